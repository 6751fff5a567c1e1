"""Which token positions of a prompt are averaged; shared by rankings and directions."""

from typing import Literal

from activations.prompts import NON_SPECIAL, PROMPT_ROLES, Role

Positions = Literal["prompt", "prompt_end", "last_prompt", "answer", "all"]
POSITION_ROLES: dict[Positions, tuple[Role, ...]] = {
    "prompt": PROMPT_ROLES,
    "prompt_end": PROMPT_ROLES,
    "last_prompt": (Role.LAST_PROMPT,),
    "answer": (Role.ANSWER,),
    "all": NON_SPECIAL,
}
PROMPT_END = 4  # tokens; in most chat templates the end of the question and the assistant's header
POSITIONS_HELP = (
    "prompt (with the assistant header), prompt_end (its last four tokens), last_prompt, answer or all of them; "
    "special tokens never are"
)
