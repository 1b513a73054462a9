"""Where Hydra finds fedgen's configs: the yaml files, with the defaults of each class put under them.

A yaml holds only what differs from its class, so that nothing is written twice. Hydra, however, lets a command line
change only keys that it sees. So this source completes every yaml that names a class with the fields of that class:
all keys can be overridden, mistyped ones are refused, and a composed config says every value that a run will use.

Both classes are Hydra plugins of its public kinds, registered by ``register``.
"""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import Container, DictConfig, OmegaConf

from fedgen.config.catalogue import shipped
from fedgen.config.schema import read

SCHEME = "fedgen"


class CompletedConfigs(ConfigSource):
    """A folder of yaml files, each completed with the defaults of the class that it names."""

    @staticmethod
    def scheme() -> str:
        """The scheme of search paths that this source serves."""
        return SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        """Reads one yaml.

        Raises:
            ConfigLoadError: there is no such file.
        """
        file = self._file(config_path)
        if not file.is_file():
            raise ConfigLoadError(f"there is no config {file}")
        header = self._get_header_dict(file.read_text(encoding="utf-8")[:512])
        return ConfigResult(self.provider, f"{SCHEME}://{self.path}", completed(OmegaConf.load(file)), header)

    def is_group(self, config_path: str) -> bool:
        """Whether a folder of that name exists."""
        return (Path(self.path) / config_path).is_dir()

    def is_config(self, config_path: str) -> bool:
        """Whether a yaml of that name exists."""
        return self._file(config_path).is_file()

    def available(self) -> bool:
        """Whether the folder exists."""
        return Path(self.path).is_dir()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Groups, configs, or both (None), below a path."""
        found: list[str] = []
        for file in (Path(self.path) / config_path).iterdir():
            self._list_add_result(found, str(Path(config_path) / file.name), file.name, results_filter)
        return sorted(set(found))

    def _file(self, config_path: str) -> Path:
        return Path(self.path) / self._normalize_file_name(config_path)


class ShippedConfigs(SearchPathPlugin):
    """Puts the configs that come with fedgen on Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Appends them, so that a folder given with `--config-dir` goes before."""
        search_path.append("main", f"{SCHEME}://{shipped('configs')}")


def register() -> None:
    """Makes both known to Hydra; doing it again changes nothing."""
    Plugins.instance().register(CompletedConfigs)
    Plugins.instance().register(ShippedConfigs)


def completed(config: Container) -> Container:
    """The config with the defaults of its class under it; as it is when it names none of fedgen's classes."""
    assert isinstance(config, DictConfig), "configs are mappings"
    target = config.get("_target_", "")
    if not target.startswith("fedgen."):
        return config
    fields = {field.name: field.default for field in read(target).fields}
    given = {
        key: completed(value) if isinstance(value, DictConfig) else value
        for key, value in config.items_ex(resolve=False)
    }
    return OmegaConf.create({"_target_": target} | fields | given)
