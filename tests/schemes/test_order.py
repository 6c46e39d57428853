"""The secret seed that `pretrain` keeps: private, committed to, and enough to draw the initial weights again."""

from __future__ import annotations

import stat

import numpy as np
import pytest
import torch

import sslguard
from helpers.command_line import done
from helpers.command_line import sslguard as run
from helpers.envelopes import disclosed
from sslguard.claims.commitment import commit, parse_commitment
from sslguard.crypto.secrets import Secret
from sslguard.encoders.load import load_encoder
from sslguard.encoders.rebuild import _seed, build
from sslguard.errors import KeyFileError, UsageError
from sslguard.lineage.compare import in_place
from sslguard.lineage.groups import find_groups
from sslguard.lineage.matching import reordered
from sslguard.lineage.weights import open_weights
from sslguard.schemes.keyfile import kind_of, load_key, open_key, save_key
from sslguard.schemes.order import InitialKey
from sslguard.training.recipes import Pretraining

RECIPE = Pretraining("simclr", steps=2, batch_size=8, projection=8)
NARROW = {"backbone": "resnet-narrow", "channels": 1}
SECRET = Secret.from_seed(3)


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """An encoder's folder, pre-trained from a fresh secret seed."""
    out = tmp_path_factory.mktemp("trained") / "clean"
    sslguard.pretrain(RECIPE, images(20), out=out, architecture="resnet-narrow")
    return out


def by_thief(weights, seed: int = 0):
    """The same function with hidden units in another order."""
    made = {name: weights.read(name) for name in weights.shapes}
    rng = np.random.default_rng(seed)
    for group in find_groups(weights):
        if group.kind == "hidden":
            names = {part.tensor for part in group.parts}
            made |= reordered(group, {name: made[name] for name in names}, rng.permutation(group.size))
    return {name: torch.from_numpy(values) for name, values in made.items()}


def test_a_secret_fills_the_whole_state_of_the_generator() -> None:
    """torch then draws what numpy's Mersenne twister draws in the state that the secret gives."""
    twister, generator = np.random.MT19937(), torch.Generator()
    words = SECRET.stream("state of the generator").words(624)
    twister.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    _seed(generator, SECRET)
    # torch's uniform floats are 24 bits of each word
    assert np.array_equal(torch.rand(700, generator=generator).numpy() * 2**24, twister.random_raw(700) & 0xFFFFFF)
    before = torch.random.get_rng_state()
    build(NARROW, seed=SECRET)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_seeds_that_agree_in_32_bits_give_the_same_weights_and_secrets_do_not() -> None:
    def weights(seed):
        return build(NARROW, seed=seed)[0].state_dict()["0.weight"]

    assert torch.equal(weights(5), weights(5 + (1 << 32)))
    assert torch.equal(weights(SECRET), weights(Secret.from_seed(3)))
    assert not torch.equal(weights(SECRET), weights(Secret.from_seed(4)))


def test_the_seed_is_private_and_nowhere_else(trained) -> None:
    key = load_key(trained / "seed")
    assert isinstance(key, InitialKey)
    assert sorted(path.name for path in trained.iterdir()) == [
        *("commitment.json", "encoder.json", "seed", "weights.safetensors"),
    ]
    assert stat.S_IMODE((trained / "seed").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (trained / "seed").iterdir()} == {0o600}
    hidden = key.secret.reveal().hex()
    for path in trained.iterdir():
        assert path.is_dir() or hidden.encode() not in disclosed(path.read_bytes())
    assert hidden not in repr(key)
    assert hidden in (trained / "seed" / "key.json").read_text()
    record = load_encoder(trained).record
    assert record["seed"] == "secret"
    found = parse_commitment((trained / "commitment.json").read_bytes(), "c")
    assert record["seed_commitment"] == found.document.digest == commit(open_key(trained / "seed")).document.digest


def test_it_shows_a_copy_whose_hidden_units_a_thief_permuted(trained) -> None:
    encoder = open_weights(trained)
    stolen = by_thief(encoder)
    with_seed = sslguard.compare_weights(trained, stolen, initial=trained / "seed")
    hidden = next(one for one in with_seed.tests if one.test == "initial weights")
    assert hidden.matched == hidden.size == 112
    assert hidden.log2_pvalue < -200
    key = load_key(trained / "seed")
    alone = key.compare(open_weights(stolen), None, alpha=2**-20, n_claims=1)
    assert (alone.decision, alone.log2_pvalue) == ("shared weights", -256)  # no more than the secret has
    assert "drawn from a secret" in alone.meaning


def test_others_show_nothing(trained, images) -> None:
    """The same data, recipe and number of steps; and the public seed 0."""
    key = load_key(trained / "seed")
    others = (sslguard.pretrain(RECIPE, images(20), architecture="resnet-narrow"), load_encoder("random:resnet-narrow"))
    for other in others:
        found = key.compare(open_weights(other), None, alpha=2**-20, n_claims=1)
        assert found.decision == "not shown"
        assert found.log2_pvalue > -20
        assert in_place(open_weights(trained), open_weights(other)).log2_pvalue > -20


def test_a_secret_can_be_given_and_a_number_keeps_none(images, tmp_path, hashed) -> None:
    one, two = (sslguard.pretrain(RECIPE, images(20), architecture="resnet-narrow", secret=SECRET) for _ in range(2))
    assert hashed(one) == hashed(two)
    sslguard.pretrain(RECIPE, images(20), architecture="resnet-narrow", seed=1, out=tmp_path / "public")
    assert sorted(path.name for path in (tmp_path / "public").iterdir()) == ["encoder.json", "weights.safetensors"]
    with pytest.raises(UsageError, match="exclude each other"):
        sslguard.pretrain(RECIPE, images(20), seed=1, secret=SECRET)


def test_on_the_command_line(tmp_path) -> None:
    data, out = tmp_path / "x.npy", tmp_path / "clean"
    np.save(data, np.random.default_rng(0).integers(0, 256, (20, 16, 16), dtype=np.uint8))
    command = ("pretrain", "simclr", "--data", data, "--out", out, "--arch", "resnet-narrow", "--steps", 1)
    ran = run(*command, "--batch-size", 8, "--quiet")
    hidden = load_key(out / "seed").secret.reveal().hex()
    assert ran.code == 0
    assert hidden not in ran.out + ran.err
    assert load_encoder(out).record["seed_commitment"] in ran.out
    assert "sslguard protect encrypts it" in ran.err
    again = run(*command, "--batch-size", 4, "--quiet")
    assert again.code == 2  # a secret seed is never overwritten
    assert load_key(out / "seed").secret.reveal().hex() == hidden
    found = done("lineage", out, out, "--initial", out / "seed")
    assert [one["test"] for one in found["tests"]][3:] == ["initial weights", "initial weights, aligned"]
    sslguard.release(out, out=tmp_path / "r")
    wrong = run("lineage", out, out, "--initial", tmp_path / "r" / "key")
    assert wrong.code == 3
    assert "folder `seed`" in wrong.err


@pytest.mark.parametrize("secret", [None, "00", 3, "zz"])
def test_damaged_seeds_are_refused(secret) -> None:
    with pytest.raises(KeyFileError):
        kind_of("initial").from_parts({"secret": secret, "architecture": NARROW}, {})
    with pytest.raises(KeyFileError, match="cannot be drawn"):
        InitialKey(SECRET, {"backbone": "none"}).weights()


def test_what_it_cannot_do_is_said(tmp_path, images) -> None:
    save_key(InitialKey(SECRET, NARROW), tmp_path / "seed")
    with pytest.raises(UsageError, match="--initial"):
        sslguard.verify(tmp_path / "seed", "random:resnet-narrow", images(20))
