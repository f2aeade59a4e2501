"""Releases: as folders, and pushed to and pulled from a hub on the loopback."""

import json
import re
import shutil

import huggingface_hub
import pytest
import torch
import typer
from huggingface_hub import constants
from typer.testing import CliRunner

import askance
from askance import hub as commands
from askance import places
from askance.pipeline.artifacts import read_json
from tests.servers import Hub

TOKEN = "hf_PLANTED-TOKEN-5d1e"
app = typer.Typer()
for name, command in commands.COMMANDS.items():
    app.command(name)(command)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return a hub on the loopback, where this process now finds models, with an empty cache."""
    with Hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
        huggingface_hub.close_session()


@pytest.fixture(scope="module")
def weights(checkpoint):
    return str(checkpoint(img_size=32))


@pytest.fixture
def pushed(hub, whole_run):
    ask("push", whole_run, "me/model")
    hub.faults()
    return hub


def ask(*arguments):
    """Run a command; no token must ever be in what it prints."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert TOKEN not in result.output
    return result


def refused(*arguments):
    """Run a command that must fail with one line, and return that."""
    result = ask(*arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1), result.output
    return result.stderr


def test_a_pushed_model_is_loaded_by_its_name_and_gives_the_same_numbers(hub, whole_run, weights):
    result = ask("push", whole_run, "me/model", "--licence", "MIT", "--message", "first")
    assert result.exit_code == 0, result.output
    commit, what, load = result.stdout.splitlines()
    assert commit.startswith(f"{hub.url}/me/model/commit/")
    assert what == "ranking (seed 0) on test_vit, licence mit"
    assert load == 'askance.load("me/model")'
    model, source = askance.load("me/model", weights), askance.load(whole_run)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    for one, other in zip(model(pixels), source(pixels), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert model.about == source.about | {"licence": "mit"}
    assert {r.headers["authorization"] for r in hub.log} == {f"Bearer {TOKEN}"}


def test_a_model_that_is_here_is_loaded_while_the_hub_is_down(pushed, weights):
    first = askance.load("me/model", weights)
    pushed.down()
    huggingface_hub.close_session()  # an open connection would break, and not be refused
    again = askance.load("me/model", weights)
    torch.testing.assert_close(again.quantiles, first.quantiles, rtol=0, atol=0)


def test_what_comes_again_is_not_downloaded_again(pushed, weights):
    askance.load("me/model", weights)
    pushed.faults()
    askance.load("me/model", weights)
    assert not [r for r in pushed.log if "/resolve/" in r.path and r.method == "GET"]


def test_a_push_takes_the_head_asked_for_and_replaces_the_one_there(pushed, whole_run):
    assert ask("push", whole_run, "me/model", "--head", "norm", "--private").exit_code == 0
    assert json.loads(pushed.commits["me/model"][-1]["config.json"])["head"] == "norm"
    assert b"`norm` on `test_vit`" in pushed.commits["me/model"][-1]["README.md"]
    assert not pushed.private["me/model"]
    assert ask("push", whole_run, "me/other", "--private", "--seed", "1").exit_code == 0
    assert pushed.private["me/other"]
    assert b'askance.load("me/other")' in pushed.commits["me/other"][-1]["README.md"]


def test_pull_writes_the_files_alone_and_says_what_they_are(pushed, tmp_path):
    folder = tmp_path / "models" / "mine"
    result = ask("pull", "me/model", folder)
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        f'{folder}: ranking (seed 0) on test_vit, licence unknown\naskance.load("{folder}")\n'
    )
    here = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert here == pushed.commits["me/model"][-1]
    assert "test_vit" not in "".join(request.path for request in pushed.log)


def test_pull_takes_another_revision_and_replaces_an_older_model(pushed, whole_run, tmp_path):
    assert ask("pull", "me/model", tmp_path / "m").exit_code == 0
    ask("push", whole_run, "me/model", "--head", "norm")
    assert ask("pull", "me/model", tmp_path / "m", "--revision", pushed.sha("me/model")).stdout
    assert read_json(tmp_path / "m" / "config.json")["head"] == "norm"


def test_a_folder_with_other_files_is_left_alone(pushed, whole_run, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    message = f"expected a new folder, or a model's, got {tmp_path} with other files"
    assert message in refused("pull", "me/model", tmp_path)
    assert message in refused("release", whole_run, tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert not pushed.log


def test_a_model_is_released_without_a_hub(hub, whole_run, weights, tmp_path):
    result = ask("release", whole_run, tmp_path / "m", "--head", "norm")
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        "no licence is told, and without one nobody may use the model: add --licence\n"
        f"{tmp_path / 'm'}: norm (seed 0) on test_vit, licence unknown\n"
        f'askance.load("{tmp_path / "m"}")\n'
    )
    options = ("--weights", weights, "--licence", "other")
    result = ask("release", tmp_path / "m", tmp_path / "m", *options)
    assert result.stdout.startswith(f"{tmp_path / 'm'}: norm (seed 0) on test_vit, licence other")
    assert ask("release", tmp_path / "m", tmp_path / "n", *options[:2]).exit_code == 0
    assert (tmp_path / "n" / "README.md").read_bytes() == (
        tmp_path / "m" / "README.md"
    ).read_bytes()
    assert not hub.log


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("unknown", "401 Unauthorized.*; log in by `hf auth login`, or set HF_TOKEN"),
        ("forbidden", "403 Forbidden.*; the token must be allowed this"),
        ("error", "500 Internal Server Error.*; try again later"),
        ("drop", "RemoteProtocolError: .*; check the network, HF_ENDPOINT and HF_HUB_OFFLINE"),
        ("cut", "; check the network"),
    ],
)
def test_a_hub_that_fails_is_told_with_the_mend(pushed, whole_run, tmp_path, fault, message):
    for arguments in (("push", whole_run, "me/model"), ("pull", "me/model", tmp_path / "m")):
        pushed.faults(rate=1.0, kinds=(fault,))
        said = refused(*arguments)
        assert re.search(message, said), said
    assert not (tmp_path / "m").exists()


def test_a_commit_that_the_hub_does_not_take_changes_nothing(pushed, whole_run):
    pushed.faults(["forbidden"], only="POST .*/commit/")
    assert "expected me/model on the hub to take the model" in refused(
        "push", whole_run, "me/model", "--head", "norm"
    )
    assert json.loads(pushed.commits["me/model"][-1]["config.json"])["head"] == "ranking"


def test_a_download_that_breaks_leaves_nothing(pushed, tmp_path):
    pushed.faults(["forbidden"], only="GET .*/resolve/.*safetensors")
    assert "403" in refused("pull", "me/model", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_server_that_is_no_hub_is_told(pushed, tmp_path, monkeypatch):
    from tests.servers import Answer

    monkeypatch.setattr(Hub, "answer", lambda *_: Answer(200, {}, b"<html>Sign in</html>"))
    assert "JSONDecodeError" in refused("pull", "me/model", tmp_path / "m")


def test_a_name_that_is_neither_here_nor_on_the_hub_is_told(hub):
    with pytest.raises(OSError, match="expected me/none here or on the hub, got RepositoryNotFou"):
        askance.load("me/none")
    with pytest.raises(FileNotFoundError, match="expected a head's file, .*models/x.safetensors"):
        askance.load("models/x.safetensors")
    assert not [request for request in hub.log if "safetensors" in request.path]


def test_an_unknown_revision_is_told(pushed, whole_run, tmp_path):
    said = refused("pull", "me/model", tmp_path / "m", "--revision", "v9")
    assert "RevisionNotFoundError" in said
    assert "check the name and the revision" in said
    assert "RevisionNotFoundError" in refused("push", whole_run, "me/model", "--revision", "v9")


def test_without_a_network_a_model_that_is_not_here_is_told(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = refused("pull", "me/model", tmp_path / "m")
    assert "OfflineModeIsEnabled" in said
    assert "check the network, HF_ENDPOINT and HF_HUB_OFFLINE" in said
    assert not hub.log


def test_wrong_names_and_licences_are_refused_before_anything_is_done(hub, whole_run, tmp_path):
    name = "expected a name on the hub as owner/name, got 'model'"
    assert name in refused("push", whole_run, "model")
    assert name in refused("pull", "model", tmp_path / "m")
    for licence in ("do what you want", "mitt", "mit or apache-2.0", "unknown"):
        said = refused("push", whole_run, "me/model", "--licence", licence)
        assert f"expected --licence as an SPDX id or other, got '{licence}': spdx.org" in said
    assert not hub.log


def test_a_model_whose_results_are_of_other_heads_is_not_pushed(hub, whole_run, tmp_path):
    shutil.copytree(whole_run, tmp_path / "run")
    about = tmp_path / "run" / "results" / "run.json"
    told = json.loads(about.read_text())
    for head in told["heads"]:
        head["tensors"] = ["of another training"] * len(head["seeds"])
    about.write_text(json.dumps(told))
    assert "got those of other heads: run evaluate again" in refused(
        "push", tmp_path / "run", "me/model"
    )
    assert not hub.log


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_model_on_the_hub_that_is_not_whole_is_not_pulled(pushed, tmp_path, name):
    files = pushed.commits["me/model"][-1]
    files[name] = files[name][:-9]
    assert "pull" in refused("pull", "me/model", tmp_path / "m")
    del files[name]
    pushed.commits["me/model"].append(files)
    assert refused("pull", "me/model", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_strangers_card_can_not_name_weights_or_arguments(pushed, whole_run, tmp_path):
    files = pushed.commits["me/model"][-1]
    card = json.loads(files["config.json"]) | {"weights": str(tmp_path / "x"), "saved": 1, "cls": 2}
    files["config.json"] = json.dumps(card).encode()
    with pytest.raises(OSError, match="expected the weights of test_vit from the model hub"):
        askance.load("me/model")


def test_what_a_card_tells_can_not_steer_a_terminal(pushed, tmp_path):
    files = pushed.commits["me/model"][-1]
    card = json.loads(files["config.json"])
    card["about"]["licence"] = "\x1b[2Jmit"
    files["config.json"] = json.dumps(card).encode()
    assert "licence \\x1b[2Jmit\n" in ask("pull", "me/model", tmp_path / "m").stdout


def test_a_model_whose_backbone_was_trained_since_is_not_released(whole_run, tmp_path):
    model = askance.load(whole_run)
    with torch.no_grad():
        next(model.backbone.network.parameters()).add_(1)
    with pytest.raises(ValueError, match="expected the weights of test_vit .*trained since"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_librarys_own_ways_do_the_same(pushed, weights, tmp_path):
    model = askance.model.Model.from_pretrained(
        "me/model", weights=weights, revision=pushed.sha("me/model"), cache_dir=tmp_path
    )
    assert model.push_to_hub("me/third").startswith(f"{pushed.url}/me/third/commit/")
    files = pushed.commits["me/third"][-1]
    assert files.keys() == set(places.FILES)
    assert b'askance.load("me/third")' in files["README.md"]
