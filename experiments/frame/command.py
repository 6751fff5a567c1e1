"""The command of an experiment: its options are the fields of its inputs, its config and the frame's options."""

import inspect
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from activations.errors import UserError
from experiments.frame.experiment import Experiment
from experiments.frame.inputs import Inputs, Options, fields_of

if TYPE_CHECKING:
    from rich.console import Console

    from experiments.frame.experiment import Result


Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class _Option:
    """An option, and the field that it fills.

    Attributes:
        path: Leads to it, through a config in the config.
        field: Gives default and help.
        parent: Default of the config in the config, whose other fields stay as they are.
    """

    path: tuple[str, ...]
    field: FieldInfo
    parent: BaseModel | None = None

    @property
    def name(self) -> str:
        return "_".join(self.path)

    def parameter(self) -> inspect.Parameter:
        """As typer reads it from a signature. Nothing given is None: defaults stay in the config."""
        kind, flag = _kind(self.field.annotation), f"--{self.name.replace('_', '-')}"
        default = _shown_default(self.field)
        info = typer.Option(flag, help=self.field.description, show_default=default)
        required = self.field.is_required()
        annotation = kind if required or kind is bool or get_origin(kind) is list else Union[kind, None]  # noqa: UP007
        empty: Any = inspect.Parameter.empty if required else False if kind is bool else None
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=empty,
            annotation=Annotated[annotation, info],  # pyright: ignore[reportInvalidTypeForm]
        )


@dataclass(frozen=True)
class Part:
    """Fields of a config that become options.

    Attributes:
        model: The config.
        names: Which of its fields; None: all.
        defaults: Shown, and given, in place of the config's own.
    """

    model: type[BaseModel]
    names: Collection[str] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def options(self) -> list[_Option]:
        """An option for every field, and for those of configs in the config."""
        wanted = [(n, f) for n, f in self.model.model_fields.items() if self.names is None or n in self.names]
        found: list[_Option] = []
        for name, one in wanted:
            if isinstance(one.default, BaseModel):
                inner = type(one.default).model_fields.items()
                found += [_Option((name, part), part_field, one.default) for part, part_field in inner]
            else:
                changed = (
                    FieldInfo.merge_field_infos(one, default=self.defaults[name]) if name in self.defaults else one
                )
                found.append(_Option((name,), changed))
        return found


def command_of(text: str, parts: Sequence[Part], do: Callable[..., None]) -> Callable[..., None]:
    """A function that typer makes a command from.

    Args:
        text: Its help; the first paragraph is shown in lists.
        parts: Where its options come from.
        do: Receives, for each part, the values that were given, as its config takes them.
    """
    options = [part.options() for part in parts]

    def command(**values: Any) -> None:
        do(*({**part.defaults, **_filled(of_part, values)} for part, of_part in zip(parts, options, strict=True)))

    parameters = [option.parameter() for of_part in options for option in of_part]
    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    command.__doc__ = text
    return command


def experiment_command(experiment: Experiment[Any], console: "Console") -> Callable[..., None]:
    """The command of an experiment."""

    def do(inputs: Mapping[str, Any], config: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        asked, frame = checked(Inputs, inputs), checked(Options, options)
        settings = checked(experiment.config, config)
        from experiments.frame.conduct import conduct

        say = (lambda line: None) if frame.quiet else (lambda line: say_plainly(line, console))
        show(conduct(experiment, asked, settings, frame, say), console)

    parts = (Part(Inputs, fields_of(experiment)), Part(experiment.config), Part(Options))
    return command_of(f"{experiment.question}\n\n{experiment.description()}", parts, do)


def show(result: "Result", console: "Console") -> None:
    """What was found, the short tables, and where everything is."""
    for section in result.sections:
        if section.printed and section.rows:
            section.print(console)
    for sentence in result.sentences:
        say_plainly(sentence, console)
    folder = result.lab.out.folder
    for name in ("report.html", "summary.json", *(f"{table}.parquet" for table in result.tables)):
        say_plainly(f"  {folder / name}", console)


def say_plainly(line: str, console: "Console") -> None:
    """A line as it is: names from the data are no markup."""
    console.print(line, soft_wrap=True, markup=False)


def checked(model: type[Model], values: Mapping[str, Any]) -> Model:
    """The settings as `model`.

    Raises:
        UserError: if an option is out of range, in one sentence.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = "-".join(str(part).replace("_", "-") for part in first["loc"] if not isinstance(part, int))
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"Option --{where}: {message}." if where else f"{message[0].upper()}{message[1:]}.") from None


def _filled(options: Sequence[_Option], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that were given, nested as the config has them."""
    found: dict[str, Any] = {}
    for option in options:
        value = values.get(option.name)
        if value is None or value == [] or (value is False and option.field.default is False):
            continue
        if option.parent is None:
            found[option.name] = value
        else:
            first, second = option.path
            found.setdefault(first, option.parent.model_dump())[second] = value
    return found


def _kind(annotation: Any) -> Any:
    """What typer reads an option as."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _kind(next(part for part in inner if part is not type(None)))
    if origin is Literal:
        return type(inner[0])
    if origin in (tuple, list):
        return list[_kind(inner[0])]
    return annotation


def _shown_default(field: FieldInfo) -> str | bool:
    """The default as help shows it."""
    value = field.default
    if field.is_required() or value is None or value is False or value == ():
        return False
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
