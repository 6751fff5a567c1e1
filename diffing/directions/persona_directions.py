"""The artefact that holds dense persona directions: a folder with `directions.safetensors` and `config.json`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from activations.artefact import finish_artefact, open_folder, publish, read_config
from activations.display import html_table
from activations.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

TENSOR_FILE = "directions.safetensors"


@dataclass(frozen=True)
class PersonaDirections:
    """Named directions at one hook point, unnormalised: their length is the distance between the two means.

    Attributes:
        vectors: Direction name -> vector.
        hook: Hook point at which they were taken (a name, because layer numbers are counted in several ways).
        config: How they were made; anything that JSON holds.
    """

    vectors: Mapping[str, Float[Tensor, "d_model"]]
    hook: str
    config: Mapping[str, Any] = field(default_factory=dict)

    KIND: ClassVar[str] = "persona_directions"

    def unit(self, name: str) -> Float[Tensor, "d_model"]:
        """The direction scaled to length 1.

        Raises:
            UserError: if there is no direction of that name, or it is zero.
        """
        if name not in self.vectors:
            raise UserError(f"No direction is called '{name}'; there are: {', '.join(sorted(self.vectors))}.")
        vector = self.vectors[name]
        norm = vector.norm()
        if norm == 0:
            raise UserError(
                f"Direction '{name}' is zero: it compares prompts with the same activations; choose others."
            )
        return vector / norm

    def to_pandas(self) -> "pd.DataFrame":
        """One row for each direction: `direction`, `norm`, and `cosine_<direction>` with every direction."""
        import pandas as pd

        from diffing.geometry import cosine_table

        norms = {name: float(vector.norm()) for name, vector in self.vectors.items()}
        table = pd.DataFrame({"direction": list(norms), "norm": list(norms.values())})
        if not self.vectors:
            return table
        cosines = cosine_table(self.vectors).add_prefix("cosine_").reset_index(drop=True)
        return pd.concat([table, cosines], axis=1)

    def _repr_html_(self) -> str:
        table = self.to_pandas()
        caption = f"PersonaDirections: {len(table)} at {self.hook}"
        return html_table(caption, list(table), table.astype(object).itertuples(index=False))

    def save(self, folder: str | Path, parents: Mapping[str, Path] | None = None, overwrite: bool = False) -> None:
        """Write the artefact folder.

        Args:
            folder: New, or with `overwrite` that of an earlier artefact.
            parents: Folders of the artefacts that it was made from, by the name they get in its provenance.
            overwrite: Replace what the folder holds.

        Raises:
            UserError: if the folder holds a finished artefact and `overwrite` is false.
        """
        open_folder(folder := Path(folder), overwrite)
        tensors = {name: vector.contiguous().cpu().clone() for name, vector in self.vectors.items()}
        temporary = folder / f".{TENSOR_FILE}.tmp"
        save_file(tensors, temporary)
        publish(temporary, folder / TENSOR_FILE)
        finish_artefact(folder, {**self.config, "kind": self.KIND, "hook": self.hook}, parents or {})

    @classmethod
    def load(cls, folder: str | Path) -> "PersonaDirections":
        """Read an artefact folder.

        Raises:
            UserError: if the folder is missing, unfinished, damaged, or of another kind.
        """
        folder = Path(folder)
        config = read_config(folder, cls.KIND)
        file = folder / TENSOR_FILE
        try:
            vectors = load_file(file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file} cannot be read ({error}); extract the directions again.") from error
        settings = {key: value for key, value in config.items() if key not in ("kind", "hook")}
        return cls(vectors, config["hook"], settings)
