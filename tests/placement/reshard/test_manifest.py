"""The manifest is believed only after every check, and comes back as it was saved."""

import json
from pathlib import Path

import pytest

from specmoe.errors import ArtifactError
from specmoe.placement.reshard.manifest import CompiledManifest, FileRecord, rank_file_name

ENTRY = {"bytes": 2, "sha256": "1" * 64}


@pytest.fixture
def manifest() -> CompiledManifest:
    names = ("config.json", "plan.safetensors", *(rank_file_name(rank, 2) for rank in range(2)))
    return CompiledManifest(
        layout="ranks",
        family="mixtral",
        model_fingerprint="a" * 64,
        plan_digest="b" * 64,
        ep_size=2,
        expert_format="fused",
        expert_modules=("model.layers.0.mlp.experts",),
        files={name: FileRecord(num_bytes=1, sha256="0" * 64) for name in names},
    )


def test_it_comes_back_as_it_was_saved(tmp_path: Path, manifest: CompiledManifest) -> None:
    manifest.save(tmp_path)
    assert CompiledManifest.load(tmp_path) == manifest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "specmoe.checkpoint/9"}, "format is"),
        ({"layout": "other"}, "layout is"),
        ({"ep_size": 10**12}, "ep_size is"),
        ({"ep_size": True}, "ep_size"),
        ({"ep_size": 5}, "does not list experts-rank-00000-of-00005"),
        ({"expert_modules": [1]}, "expert_modules"),
        ({"files": {"../outside": {"bytes": 1, "sha256": "0" * 64}}}, "not a relative path inside"),
        ({"files": {"/etc/passwd": {"bytes": 1, "sha256": "0" * 64}}}, "not a relative path inside"),
        ({"files": {"a//b": {"bytes": 1, "sha256": "0" * 64}}}, "not a relative path inside"),
        ({"files": {"specmoe.json": {"bytes": 1, "sha256": "0" * 64}}}, "not a relative path inside"),
        ({"files": {"a": {"bytes": -1, "sha256": "0" * 64}}}, "impossible size or hash"),
        ({"files": {"a": {"bytes": 1, "sha256": "x"}}}, "impossible size or hash"),
        ({"files": {"a": 1}}, "not an object"),
        ({"files": []}, "files"),
    ],
)
def test_a_manifest_that_lies_is_refused(tmp_path, manifest, changes, message) -> None:
    path = tmp_path / "specmoe.json"
    path.write_text(json.dumps({**manifest.to_json(), **changes}))
    with pytest.raises(ArtifactError, match=f"^{path}: .*{message}"):
        CompiledManifest.load(tmp_path)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_no_json_is_refused(tmp_path, text) -> None:
    path = tmp_path / "specmoe.json"
    path.write_bytes(text)
    with pytest.raises(ArtifactError, match=f"^{path} is damaged"):
        CompiledManifest.load(tmp_path)


def test_a_manifest_that_names_a_file_twice_is_refused(tmp_path, manifest) -> None:
    """Else one reader would check the first entry, another the second."""
    path = tmp_path / "specmoe.json"
    text = json.dumps(manifest.to_json())
    path.write_text(text.replace('"config.json": ', f'"config.json": {json.dumps(ENTRY)}, "config.json": ', 1))
    with pytest.raises(ArtifactError, match=r"the name 'config\.json' occurs twice"):
        CompiledManifest.load(tmp_path)
