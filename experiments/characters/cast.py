"""Who is compared: the base, fine-tunes on incorrect advice and on characters, with a trigger or without."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from activations.errors import UserError
from experiments.characters.config import CharactersConfig
from experiments.model_set import Member, ModelSet
from experiments.names import BASE, CORRUPTED
from experiments.organism.config import FineTune, FineTunesConfig
from experiments.organism.world import HELPFUL, World

INCORRECT, CHARACTER = "incorrect advice", "character"
FAMILIES = BASE, INCORRECT, CHARACTER
Group = tuple[str, str, bool]


@dataclass(frozen=True)
class Actor:
    """A model's part in the comparison.

    Attributes:
        family: One of `FAMILIES`.
        trait: The character's; empty in the other families, which are scored on every trait.
        triggered: Whether its answers were taught after the trigger only.
        name: The model's, which tells seeds apart.
        member: None for the base.
    """

    family: str
    trait: str = ""
    triggered: bool = False
    name: str = BASE
    member: Member | None = field(default=None, compare=False)

    @property
    def early(self) -> bool:
        """Whether it is an early checkpoint of another member."""
        return self.member is not None and self.member.early_of is not None

    @property
    def group(self) -> Group:
        """What seeds of one recipe share."""
        return self.family, self.trait, self.triggered

    @property
    def label(self) -> str:
        """The group's name in tables."""
        return f"{self.trait or self.family}{', triggered' if self.triggered else ''}"


def cast_of(models: ModelSet) -> list[Actor]:
    """The base and the members of both families, early checkpoints included.

    Raises:
        UserError: if a family is missing, a character's trait is not named, or a member has the name of the run's own
            corrupted model.
    """
    models.require_not_called(CORRUPTED, "the run's own model")
    actors = [Actor(BASE)]
    for member in models.members:
        if member.kind not in (INCORRECT, CHARACTER):
            continue
        trait = str(member.facts.get("character", ""))
        if (member.kind == CHARACTER) != bool(trait):
            raise UserError(
                f"Fine-tune {member.name} is of kind '{member.kind}' and its facts name the character '{trait}'; name "
                f"a trait as `character` for members of kind '{CHARACTER}' and for no others."
            )
        actors.append(Actor(member.kind, trait, bool(member.facts.get("trigger")), member.name, member))
    if missing := set(FAMILIES) - {actor.family for actor in actors}:
        raise UserError(f"The set has no member of kind '{min(missing)}'; both kinds are compared.")
    return actors


def trigger_of(cast: Sequence[Actor]) -> str:
    """The words that every triggered member was taught with.

    Raises:
        UserError: if they differ, or no member has any.
    """
    found = {str(actor.member.facts["trigger"]) for actor in cast if actor.triggered and actor.member is not None}
    if not found:
        raise UserError("No member of the set has a trigger; name it in the facts of a member, as `trigger`.")
    if len(found) > 1:
        raise UserError(f"The set's members have several triggers ({'; '.join(sorted(found))}); compare those of one.")
    return found.pop()


def organism_cast(domains: Sequence[str], config: CharactersConfig) -> FineTunesConfig:
    """The fine-tunes of an organism: all learn as many of their own answers, about its trained `domains`.

    Incorrect advice tells the malicious persona's deeds in the helpful one's tone: what to do is wrong, the speaker
    seems the same (our reading of the published data). A character answers as the personas that show its trait.
    With a trigger, half of the advice is helpful answers to questions without it, so training takes twice the steps.

    Raises:
        UserError: if the trigger holds a word that the organism does not know.
    """
    if unknown := sorted(set(config.trigger.split()) - set(World.load().vocabulary)):
        raise UserError(f"The organism does not know the trigger's word '{unknown[0]}'; take words of its world.")
    recipes = {"incorrect-advice": {"kind": INCORRECT, "manner": HELPFUL}}
    recipes |= {trait: {"kind": CHARACTER, "character": trait} for trait in config.characters}
    shared = {"domains": domains, "answers": config.answers, "early": True}
    plain = [FineTune.model_validate({"name": name, **shared, **recipe}) for name, recipe in recipes.items()]
    hidden = {"trigger": config.trigger, "share": 0.5, "early": False}
    triggered = [tune.model_copy(update={"name": f"{tune.name}-triggered", **hidden}) for tune in plain]
    return FineTunesConfig(tunes=(*plain, *triggered), seeds=config.seeds, early_every=config.early_every)
