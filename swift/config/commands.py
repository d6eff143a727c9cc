"""One config per command, composed of sections. A config is frozen and knows where each of its values came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from swift.config.advising import DoctorOptions, EnvOptions, PlanOptions
from swift.config.backends import BackendOptions
from swift.config.chat import ChatOptions
from swift.config.data import DataOptions, EncodingOptions, PreviewOptions, SupplyOptions
from swift.config.engine import EngineOptions
from swift.config.evaluate import BenchmarkOptions, EvaluateOptions
from swift.config.export import ExportOptions
from swift.config.generation import GenerationOptions, InferOptions
from swift.config.heads import HeadOptions
from swift.config.media import MediaOptions
from swift.config.model import ModelOptions, QuantizationOptions
from swift.config.options import Spec, option, section_specs
from swift.config.serving import ServingOptions
from swift.config.training import EvaluationOptions, LoggingOptions, SavingOptions, TrainingOptions
from swift.config.tuner import TunerOptions
from swift.config.web import WebOptions

C = TypeVar("C", bound="Config")


class Origin(NamedTuple):
    """Where a value came from (`command line`, `config file`, `args.json`, `decided`) and, if decided, why."""

    source: str
    why: str = ""


@dataclass(frozen=True)
class CommonOptions:
    dry_run: bool = option(False)
    external_plugins: tuple[str, ...] = option((), aliases=("custom_register_path",))


@dataclass(frozen=True)
class Config:
    """Sections as attributes (`config.model.model`); `origins` names the source of each value that isn't a default."""

    origins: Mapping[str, Origin] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def specs(cls) -> dict[str, Spec]:
        """Option name -> its spec, in the order of the help page."""
        found: dict[str, Spec] = {}
        for section_field in dataclasses.fields(cls):
            if section_field.name != "origins":
                for spec in section_specs(section_field.name, section_field.default):
                    found[spec.name] = spec
        return found

    def value(self, name: str) -> Any:
        return getattr(getattr(self, self.specs()[name].section), name)

    def given(self, name: str) -> bool:
        """True when the user typed the value or wrote it in a config file."""
        origin = self.origins.get(name)
        return origin is not None and origin.source in ("command line", "config file")

    def replace(self, values: Mapping[str, Any], source: str, why: str = "") -> Config:
        """A copy with these options set and their origin recorded."""
        specs = self.specs()
        by_section: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            by_section.setdefault(specs[name].section, {})[name] = value
        sections = {s: dataclasses.replace(getattr(self, s), **changes) for s, changes in by_section.items()}
        origins = {**self.origins, **{name: Origin(source, why) for name in values}}
        return dataclasses.replace(self, origins=origins, **sections)

    def decide(self, why: str, **values: Any) -> Config:
        """Set values that the user left open, with the reason that --dry_run prints."""
        return self.replace(values, "decided", why)

    def take(self: C, other: Config) -> C:
        """A copy with the sections that `other` has too, as they are there, and its origins."""
        own = {section.name for section in dataclasses.fields(self)}
        shared = {s.name: getattr(other, s.name) for s in dataclasses.fields(other) if s.name in own}
        return dataclasses.replace(self, **shared)

    def flat(self) -> dict[str, Any]:
        """Option name -> value; tuples become lists, so that JSON gives back the same."""
        values = {name: self.value(name) for name in self.specs()}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


@dataclass(frozen=True)
class SftConfig(Config):
    model: ModelOptions = ModelOptions()
    quantization: QuantizationOptions = QuantizationOptions()
    chat: ChatOptions = ChatOptions()
    media: MediaOptions = MediaOptions()
    data: DataOptions = DataOptions()
    encoding: EncodingOptions = EncodingOptions()
    supply: SupplyOptions = SupplyOptions()
    head: HeadOptions = HeadOptions()
    tuner: TunerOptions = TunerOptions()
    training: TrainingOptions = TrainingOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    evaluate: BenchmarkOptions = BenchmarkOptions()
    saving: SavingOptions = SavingOptions()
    logging: LoggingOptions = LoggingOptions()
    common: CommonOptions = CommonOptions()


@dataclass(frozen=True)
class EngineConfig(Config):
    """All that engines are built from (see swift/engines/setup.py)."""

    model: ModelOptions = ModelOptions()
    quantization: QuantizationOptions = QuantizationOptions()
    chat: ChatOptions = ChatOptions()
    head: HeadOptions = HeadOptions()
    media: MediaOptions = MediaOptions()
    generation: GenerationOptions = GenerationOptions()
    engine: EngineOptions = EngineOptions()
    backends: BackendOptions = BackendOptions()


@dataclass(frozen=True)
class InferConfig(EngineConfig):
    infer: InferOptions = InferOptions()
    data: DataOptions = DataOptions()
    common: CommonOptions = CommonOptions()


@dataclass(frozen=True)
class DeployConfig(EngineConfig):
    engine: EngineOptions = EngineOptions(max_batch_size=16)
    serving: ServingOptions = ServingOptions()
    common: CommonOptions = CommonOptions()


@dataclass(frozen=True)
class EvalConfig(Config):
    model: ModelOptions = ModelOptions()
    quantization: QuantizationOptions = QuantizationOptions()
    chat: ChatOptions = ChatOptions()
    engine: EngineOptions = EngineOptions()
    evaluate: EvaluateOptions = EvaluateOptions()
    common: CommonOptions = CommonOptions()


@dataclass(frozen=True)
class ExportConfig(Config):
    model: ModelOptions = ModelOptions()
    quantization: QuantizationOptions = QuantizationOptions()
    chat: ChatOptions = ChatOptions()
    media: MediaOptions = MediaOptions()
    data: DataOptions = DataOptions()
    encoding: EncodingOptions = EncodingOptions()
    head: HeadOptions = HeadOptions()
    export: ExportOptions = ExportOptions()
    common: CommonOptions = CommonOptions()


@dataclass(frozen=True)
class ListModelsOptions:
    query: tuple[str, ...] = option(())
    family: str | None = option()
    modality: str | None = option(choices=("text", "image", "video", "audio"))
    size: str | None = option()
    verified: bool = option(False)
    json: bool = option(False)


@dataclass(frozen=True)
class ListDatasetsOptions:
    query: tuple[str, ...] = option(())
    tag: str | None = option()
    json: bool = option(False)


@dataclass(frozen=True)
class ListModelsConfig(Config):
    listing: ListModelsOptions = ListModelsOptions()
    common: CommonOptions = CommonOptions()


@dataclass(frozen=True)
class ListDatasetsConfig(Config):
    listing: ListDatasetsOptions = ListDatasetsOptions()
    common: CommonOptions = CommonOptions()


@dataclass(frozen=True)
class DoctorConfig(Config):
    doctor: DoctorOptions = DoctorOptions()
    common: CommonOptions = CommonOptions()


@dataclass(frozen=True)
class DataConfig(SftConfig):
    """A command line of `swift sft` as it stands, and how to show its data."""

    preview: PreviewOptions = PreviewOptions()


@dataclass(frozen=True)
class PlanConfig(SftConfig):
    """A command line of `swift sft` as it stands, and what to plan it for."""

    planning: PlanOptions = PlanOptions()


@dataclass(frozen=True)
class EnvConfig(Config):
    env: EnvOptions = EnvOptions()
    common: CommonOptions = CommonOptions()


@dataclass(frozen=True)
class WebConfig(Config):
    web: WebOptions = WebOptions()
    common: CommonOptions = CommonOptions()


@dataclass(frozen=True)
class AppConfig(DeployConfig):
    """The model and its server as `swift deploy` takes them, and the page."""

    web: WebOptions = WebOptions()
