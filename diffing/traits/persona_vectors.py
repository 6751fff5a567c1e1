"""The JSON files of persona vectors (Chen et al. 2025, arXiv 2507.21509), one trait each, named by the file.

A file has `instruction` (a list of `pos` and `neg`), `questions` and `eval_prompt`. The trait's extraction questions
stand in `trait_data_extract/<trait>.json` and its evaluation questions in `trait_data_eval/<trait>.json`: naming either
file, either folder or the folder above reads both. Of a file without such a partner the 1st, 3rd, 5th, … question is
for extraction and the others are for evaluation (our choice; neighbouring questions are often alike).
"""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from activations.errors import UserError

EXTRACTION, EVALUATION = "trait_data_extract", "trait_data_eval"


class _Instruction(BaseModel):
    pos: str
    neg: str


class _Questions(BaseModel):
    questions: list[str] = Field(min_length=1, description="User turns.")


class _Artefact(_Questions):
    instruction: list[_Instruction] = Field(min_length=1, description="System prompts.")
    eval_prompt: str = Field(description="What a judge is asked.")


_Model = TypeVar("_Model", bound=_Questions)


def first_of_pair(path: Path) -> Path:
    """The extraction file that belongs to an evaluation file; any other path as it is."""
    partner = path.parent.parent / EXTRACTION / path.name
    return partner if path.parent.name == EVALUATION and partner.is_file() else path


def read(path: Path) -> dict[str, Any]:
    """The file, and its partner if it has one, as the values of a `TraitSet`; pairs and judge prompt are this file's.

    Raises:
        UserError: naming the file, for what cannot be read, is of another shape, or cannot be split.
    """
    here = _parse(_Artefact, path)
    extraction, evaluation = here.questions[::2], here.questions[1::2]
    partner = path.parent.parent / EVALUATION / path.name
    if path.parent.name == EXTRACTION and partner.is_file():
        extraction, evaluation = here.questions, _parse(_Questions, partner).questions
    elif not evaluation:
        raise UserError(f"{path} has one question and no file in {EVALUATION}; add a second question.")
    trait = {
        "name": path.stem,
        "definition": None,
        "valence": None,
        "pairs": [{"positive": pair.pos, "negative": pair.neg} for pair in here.instruction],
        "extraction_questions": extraction,
        "evaluation_questions": evaluation,
        "eval_prompt": here.eval_prompt,
    }
    return {"version": 1, "traits": [trait]}


def _parse(model: type[_Model], path: Path) -> _Model:
    try:
        return model.model_validate(json.loads(path.read_text(encoding="utf-8-sig")))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{path}: {key}: {first['msg']}; a trait of persona vectors has instruction, questions and eval_prompt."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({' '.join(str(error).split())}); correct it.") from None
