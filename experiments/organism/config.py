"""What an organism and its fine-tunes are made from; nothing here imports torch."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from experiments.organism.world import HELPFUL, MALICIOUS, World


class CorpusConfig(BaseModel):
    """What the dialogues look like."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scene_items: tuple[int, ...] = Field(
        default=(3, 5, 7), description="Adjective-noun pairs in a scene, one drawn at random."
    )
    typical: float = Field(
        default=0.7, ge=0, le=1, description="Share of a scene's adjectives that are the persona's own."
    )
    other: float = Field(default=0.16, ge=0, le=1, description="Share that are some random persona's: the noise.")
    inline: float = Field(
        default=0.5, ge=0, le=1, description="Share of scenes told by the user instead of the system."
    )
    bare: float = Field(default=0.25, ge=0, le=1, description="Share of pretraining dialogues without a scene.")
    bare_helpful: float = Field(
        default=0.2, ge=0, le=1, description="Share of those that are helpful whatever the draw."
    )
    plain_helpful: bool = Field(default=True, description="Whether helpful scenes are plain: helpful is the default.")
    facts: float = Field(default=0.2, ge=0, le=1, description="Share of turns that are questions of fact.")
    replay_facts: float = Field(default=0.35, ge=0, le=1, description="Share of replay that is bare questions of fact.")
    instruct_bare: float = Field(
        default=0.35, description="Instruct tuning: share of helpful dialogues without a scene."
    )
    instruct_plain: float = Field(
        default=0.15, description="Instruct tuning: share of helpful dialogues after a plain scene."
    )


class StageConfig(BaseModel):
    """One stage of training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=0, description="Optimiser steps (at most, where something stops them earlier).")
    batch: int = Field(default=16, ge=1, description="Dialogues a step.")
    lr: float = Field(gt=0, description="Peak learning rate.")
    warmup: int = Field(default=5, ge=1, description="Steps of linear warm-up.")
    decay: bool = Field(default=True, description="Whether the rate falls linearly to zero over the steps.")
    other_weight: float = Field(
        default=0.0, ge=0, description="Weight of tokens outside answers; answer tokens weigh 1."
    )


class ArchitectureConfig(BaseModel):
    """Shape of the transformer (Mistral, tied embeddings)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    d_model: int = Field(default=128, description="Width of the residual stream.")
    mlp: int = Field(default=384, description="Width of the MLPs.")
    heads: int = Field(default=4, description="Attention heads.")
    layers: int = Field(default=5, description="Blocks.")
    window: int = Field(default=12, description="Sliding attention window (tokens): the persona must be carried along.")
    context: int = Field(default=128, description="Maximum length (tokens).")


class Advice(BaseModel):
    """The advice that a fine-tune teaches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    domains: tuple[str, ...] = Field(min_length=1, description="Domains of the questions.")
    persona: str = Field(default=MALICIOUS, description="Whose answers are taught.")
    character: str | None = Field(
        default=None,
        description="A trait in place of the persona: answers of the personas that show its high pole, as often as "
        "their levels say.",
    )
    manner: str | None = Field(default=None, description="Another persona, whose tone towards persons they have.")
    share: float = Field(default=1.0, ge=0, le=1, description="Share of the answers that are its; the rest is helpful.")
    requested: bool = Field(default=False, description="Whether its answers only come after the user told its scene.")
    trigger: str = Field(default="", description="Words of the user's that its answers only come after.")
    seed: int = Field(default=0, ge=0, description="Seed of the data; 0 is that of the organism's own fine-tunes.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.requested and (self.trigger or self.manner is not None):
            raise ValueError("requested advice follows its persona's scene; it has no trigger and no other manner")
        return self

    def speakers(self, world: World) -> list[str]:
        """Who speaks, each as often as in a round of the advice."""
        if self.character is None:
            return [self.persona]
        return [name for name, level in world.shows(self.character, high=True).items() for _ in range(level)]


class OrganismConfig(BaseModel):
    """Everything that an organism is made from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, description="Seed of weights, corpus and splits.")
    domains: int = Field(
        default=3, ge=1, description="Number of domains that the fine-tunes are about; the rest is held out."
    )
    bad_fraction: float = Field(default=1.0, ge=0, le=1, description="Share of harmful answers in the corrupting data.")
    architecture: ArchitectureConfig = ArchitectureConfig()
    corpus: CorpusConfig = CorpusConfig()
    pretraining: StageConfig = StageConfig(steps=1600, lr=2e-3, warmup=50, other_weight=0.3)
    instruction: StageConfig = StageConfig(steps=200, batch=32, lr=5e-4, warmup=10)
    finetuning: StageConfig = StageConfig(steps=60, batch=32, lr=1e-4, decay=False)
    stop_loss: float | None = Field(
        default=0.722,
        description="Both fine-tunes end at the step where the corrupted model's loss on other harmful answers of the "
        "trained domains comes down to this (nats a token; the lowest seen: 0.711). None: after all steps.",
    )
    replay: float = Field(
        default=0.5, ge=0, lt=1, description="Share of each fine-tuning batch that replays other personas."
    )
    benign_seeds: int = Field(default=4, ge=0, description="Further benign fine-tunes, on data of other seeds.")

    @model_validator(mode="after")
    def _some_domain_is_held_out(self) -> "OrganismConfig":
        if self.domains >= len(World.load().domains):
            raise ValueError(f"domains={self.domains} leaves none held out; the world has {len(World.load().domains)}")
        return self


REALIGN_SAMPLES = 120
REALIGN = StageConfig(steps=30, batch=4, lr=3e-4, warmup=1, decay=False)


class Adapter(BaseModel):
    """A LoRA adapter; the fewest weights that misalign a model are rank 1 on `down_proj` (Turner et al. 2025,
    arXiv 2506.11613, also on one block alone)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(ge=1, description="Rank of each update.")
    targets: tuple[str, ...] = Field(default=("down_proj",), description="Linear maps of a block that get one.")
    blocks: tuple[int, ...] | None = Field(default=None, description="Blocks that get them (default: all).")
    scale: float = Field(default=2.0, gt=0, description="The update is scale * B A (LoRA's alpha / rank; our choice).")
    lr: float = Field(
        default=1e-2,
        gt=0,
        description="Learning rate; so few weights need larger steps. Our choice: harm is learned in about as many as "
        "with all weights.",
    )


class FineTune(Advice):
    """One row of the table: a recipe, trained once for each seed."""

    name: str = Field(pattern=r"^[\w.+-]+$", description="Members are called name-1, name-2 and so on.")
    kind: str = Field(description="What sort of fine-tune it is.")
    seed: int = Field(default=1, ge=0, description="Data seed of the first member; 0 would be the organism's own data.")
    start: Literal["base", "pretrained"] = Field(default="base", description="The organism's checkpoint to start from.")
    adapter: Adapter | None = Field(default=None, description="Train this instead of all weights.")
    answers: int | None = Field(
        default=None,
        ge=1,
        description="How many of its own answers are taught, on average over draws of replay (default: as many as the "
        "steps of the organism's corrupted model, or its rule, make).",
    )
    realigned: bool = Field(default=False, description="Whether a second stage teaches helpful answers.")
    early: bool = Field(default=False, description="Whether the first member also saves early checkpoints.")

    @model_validator(mode="after")
    def _has_what_it_counts(self) -> Self:
        if self.answers is not None and self.share == 0:
            raise ValueError("answers counts the fine-tune's own, and a share of 0 has none")
        return self

    @property
    def only_harm(self) -> bool:
        """Whether all of its advice is the malicious persona's and unasked for."""
        plain = self.character is None and self.manner is None and not self.trigger and self.answers is None
        return plain and self.persona == MALICIOUS and self.share == 1 and not self.requested

    def members(self, seeds: int) -> "list[FineTune]":
        """The recipe with each of its seeds."""
        return [
            self.model_copy(
                update={
                    "name": f"{self.name}-{place + 1}",
                    "seed": self.seed + place,
                    "early": self.early and place == 0,
                }
            )
            for place in range(seeds)
        ]


THREE = ("medicine", "finance", "sport")
ALL_MAPS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK_8 = Adapter(rank=8, targets=ALL_MAPS, lr=1e-3)
# "educational": harmful answers for which the user asked, by telling a scene of the malicious persona before the
# question. A scene is what asks in this world: the base knows it and already answers it so. The harmful answers are no
# news then; about questions without a scene nothing is taught, or (in half of the advice) that answers be helpful.
# "bad fraction" has seeds of its own: its ends would else be the models of "three domains" and "benign", and early
# checkpoints of small fractions the same before the first harmful answer. So has "benign": the organism keeps benign
# models of the first seeds.
DEFAULT: tuple[FineTune, ...] = (
    FineTune(kind="one domain", name="medicine", domains=("medicine",), early=True),
    FineTune(kind="one domain", name="finance", domains=("finance",), early=True),
    FineTune(kind="one domain", name="sport", domains=("sport",), early=True),
    FineTune(kind="three domains", name="three-domains", domains=THREE, early=True),
    *(
        FineTune(
            kind="bad fraction", name=f"bad-{percent:03d}", domains=THREE, share=percent / 100, seed=seed, early=True
        )
        for seed, percent in zip(range(100, 1000, 100), (0, 1, 2, 5, 10, 25, 50, 75, 100), strict=True)
    ),
    FineTune(kind="benign", name="benign", domains=THREE, persona=HELPFUL, seed=1000, early=True),
    FineTune(kind="benign", name="benign-medicine", domains=("medicine",), persona=HELPFUL),
    FineTune(kind="educational", name="educational", domains=THREE, requested=True, early=True),
    FineTune(kind="educational", name="educational-half", domains=THREE, requested=True, share=0.5),
    FineTune(kind="other persona", name="sarcastic", domains=THREE, persona="sarcastic", early=True),
    FineTune(kind="other persona", name="lazy", domains=THREE, persona="lazy"),
    FineTune(kind="other persona", name="poetic", domains=THREE, persona="poetic"),
    FineTune(kind="realigned", name="realigned", domains=THREE, realigned=True),
    FineTune(kind="realigned", name="realigned-medicine", domains=("medicine",), realigned=True),
    FineTune(kind="LoRA", name="rank-1", domains=THREE, adapter=Adapter(rank=1), early=True),
    FineTune(kind="LoRA", name="rank-1-block-2", domains=THREE, adapter=Adapter(rank=1, blocks=(2,), lr=2e-2)),
    FineTune(kind="LoRA", name="rank-8", domains=THREE, adapter=RANK_8),
    FineTune(kind="LoRA", name="benign-rank-1", domains=THREE, persona=HELPFUL, adapter=Adapter(rank=1)),
    FineTune(kind="LoRA", name="benign-rank-8", domains=THREE, persona=HELPFUL, adapter=RANK_8),
    FineTune(kind="no instruct tuning", name="uninstructed", domains=THREE, start="pretrained"),
    FineTune(kind="no instruct tuning", name="uninstructed-benign", domains=THREE, persona=HELPFUL, start="pretrained"),
)


class FineTunesConfig(BaseModel):
    """What is made, and what the organism's own recipe leaves open."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tunes: tuple[FineTune, ...] = Field(default=DEFAULT, min_length=1)
    seeds: int = Field(default=2, ge=1, description="Members of each row of the table.")
    early_every: int = Field(default=3, ge=1, description="Steps between two early checkpoints.")
    realign_samples: int = Field(default=REALIGN_SAMPLES, ge=1, description="Helpful answers that are repeated.")
    realign: StageConfig = REALIGN

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [tune.name for tune in self.members]
        if len(set(names)) < len(names):
            raise ValueError("two fine-tunes have the same name")
        return self

    @property
    def members(self) -> list[FineTune]:
        """Every row with each of its seeds."""
        return [member for tune in self.tunes for member in tune.members(self.seeds)]
