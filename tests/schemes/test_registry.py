"""The table of schemes: every name is found, told again, and says what its class is."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sslguard.attacks.registry import build, describe
from sslguard.encoders.wrapped import Wrapped
from sslguard.errors import UsageError
from sslguard.schemes.base import Scheme, Watermarked
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.order import OrderKey
from sslguard.schemes.peers.wet import Wet
from sslguard.schemes.registry import CHOICES, PRESETS, SCHEMES, build_scheme, key_class
from sslguard.schemes.sslguard.key import CuredKey, SSLGuardKey
from sslguard.schemes.sslguard.scheme import CuredSSLGuard, SSLGuard
from sslguard.settings import to_table


@pytest.mark.parametrize("name", SCHEMES)
def test_every_name_is_found_and_told_again(name: str) -> None:
    scheme = build_scheme(name, {})
    assert isinstance(scheme, Scheme)
    assert CHOICES.name_of(scheme) == scheme.name
    assert type(build_scheme(scheme.name, {})) is type(scheme)
    assert name == scheme.name or name.startswith(f"{scheme.name}-")
    told = to_table(scheme, named={Scheme: CHOICES})
    assert build_scheme(told.pop("scheme"), told) == scheme
    overwrite = build("overwrite", {"scheme": {"scheme": name}})
    assert describe(overwrite)["scheme"] == {"scheme": scheme.name, **told}


def test_presets_are_what_their_methods_give() -> None:
    made = {preset: build_scheme(name, {}) for preset, name in PRESETS["sslguard"].items()}
    assert made == {"cured": CuredSSLGuard(), "small": SSLGuard(), "published": SSLGuard.published()}
    assert build_scheme("sslguard-cured", {"steps": 3}) == CuredSSLGuard(steps=3)


def test_presets_of_the_exact_scheme_differ_in_the_size_of_the_mark() -> None:
    strong, gentle = (build_scheme(name, {}) for name in PRESETS["exact"].values())
    assert (strong, gentle) == (Exact(), Exact.gentle())
    assert strong.protocol == gentle.protocol


def test_names_are_suggested() -> None:
    with pytest.raises(UsageError, match=r"scheme must be one of sslguard, .*, not 'exat'\. Did you mean 'exact'\?"):
        build_scheme("exat", {})
    with pytest.raises(
        UsageError, match=r"exact\.protocol has no setting 'functoins'; .*\. Did you mean 'functions'\?"
    ):
        build_scheme("exact", {"protocol": {"functoins": 1}})


def test_what_a_scheme_is_stands_on_its_class() -> None:
    schemes = [
        build_scheme(name, {}) for name in SCHEMES if name in ("sslguard", "sslguard-cured", "exact") or "-" not in name
    ]
    schemes.append(build_scheme("dataset-inference", {}))
    assert {s.name for s in schemes if not s.injects} == {"dataset-inference", "fingerprint"}
    assert {s.name for s in schemes if s.saw_clean} == {"sslguard"}
    assert {s.name for s in schemes if s.fresh_secrets} == {"exact", "order", "sslguard-cured"}
    assert not any(s.on_answers for s in schemes)
    assert Exact(Protocol(), mode="head").on_answers


def test_keys_are_kept_of_schemes_that_say_so() -> None:
    kept = {name: key_class(name) for name in SCHEMES}
    kinds = {"sslguard": SSLGuardKey, "sslguard-cured": CuredKey, "exact": ExactKey, "order": OrderKey}
    assert {name: kind for name, kind in kept.items() if kind} == kinds
    assert all(kind is None or kind.scheme == name for name, kind in kept.items())
    assert all(key_class(name) is None for name in ("sslguard-published", "wett", 3, None, ["exact"]))


def test_a_mark_on_answers_leaves_no_encoder(tiny, images) -> None:
    from sslguard.crypto.secrets import Secret

    made = Wet(terms=3, n=5).watermark(tiny(1), images(9), secret=Secret.from_seed(1))
    assert isinstance(made, Watermarked)
    assert isinstance(made.embedder, Wrapped)
    with pytest.raises(UsageError, match="the scheme wet marks answers"):
        _ = made.encoder


def test_names_and_settings_need_neither_torch_nor_numpy() -> None:
    modules = "schemes.registry", "schemes.exact.settings", "schemes.sslguard.settings", "training.recipes"
    imports = "; ".join(f"import sslguard.{name}" for name in modules)
    made = "[build_scheme(name, {}) for name in ('exact', 'sslguard-cured')]"
    code = f"import sys; {imports}; from sslguard.schemes.registry import build_scheme; {made}"
    code += "; print({'torch', 'numpy', 'scipy'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
