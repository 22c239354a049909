"""Where a full-precision model comes from, and the architecture that it must have."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from wfray.config.base import Config


class Architecture(Config):
    """The true figures of an architecture. A loaded model that differs is refused; planning needs no weights."""

    family: str
    """`model_type` of the Hugging Face configuration: llama, qwen3, ..."""
    num_layers: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_heads: PositiveInt
    num_kv_heads: PositiveInt
    head_dim: PositiveInt
    vocab_size: PositiveInt
    tied_head: bool
    """Whether the LM head is the embedding."""

    @property
    def num_linear_parameters(self) -> int:
        """Weights of the seven projections of all layers: what becomes ternary."""
        attention = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        return self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def num_parameters(self) -> int:
        """All weights but the norms', which are below 0.1%."""
        return self.num_linear_parameters + self.vocab_size * self.hidden_size * (1 if self.tied_head else 2)


class PackageGGUF(Config):
    """A GGUF file inside an installed Python package, dequantized by transformers."""

    kind: Literal["package_gguf"]
    package: str
    """Import name of the package."""
    file: str
    """The file, relative to the package's directory."""
    licence: str
    architecture: Architecture


class HubModel(Config):
    """A checkpoint on the Hugging Face Hub, downloaded by transformers."""

    kind: Literal["hub"]
    id: str
    revision: str = "main"
    architecture: Architecture


class LocalModel(Config):
    """A Hugging Face checkpoint directory with safetensors and a tokenizer."""

    kind: Literal["directory"]
    path: str
    """A relative one stands under `$WFRAY_HOME`, like the run."""
    architecture: Architecture | None = None


class RandomModel(Config):
    """Random weights of a given architecture with the tokenizer of another model: for tests and dry runs of a recipe."""

    kind: Literal["random"]
    tokenizer: "ModelSource"
    architecture: Architecture
    seed: int = 0


ModelSource = Annotated[PackageGGUF | HubModel | LocalModel | RandomModel, Field(discriminator="kind")]
RandomModel.model_rebuild()
