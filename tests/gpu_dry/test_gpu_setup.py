"""Finding CUDA's folders, and planning what is installed and compiled, on made-up machines."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from gpu_environment import build_environment, cuda_folders, run_environment
from gpu_packages import SetupError, Step, built_folder, distribution_of, installed_here, plan_setup, run_steps


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Site-packages as torch's wheels for CUDA 13 fill it."""
    root = tmp_path / "site-packages"
    for folder in ("cu13/include/cccl", "cu13/lib", "cudnn/include", "cudnn/lib", "nccl/include", "nccl/lib"):
        (root / "nvidia" / folder).mkdir(parents=True)
    (root / "nvidia" / "cusparselt" / "lib").mkdir(parents=True)
    (root / "nvidia" / "empty").mkdir()
    (root / "nvidia" / "note.txt").write_text("")
    return root


def with_nvcc(folder: Path) -> Path:
    (folder / "bin").mkdir(parents=True)
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    return folder


def test_folders_of_torchs_wheels(site: Path, tmp_path: Path) -> None:
    found = cuda_folders([tmp_path / "none", site], {}, usual=tmp_path / "none")
    home = site / "nvidia"
    assert found.includes == (
        home / "cu13/include", home / "cu13/include/cccl", home / "cudnn/include", home / "nccl/include"
    )  # fmt: skip
    assert found.libraries == tuple(home / name / "lib" for name in ("cu13", "cudnn", "cusparselt", "nccl"))
    assert found.cudnn == home / "cudnn"
    assert found.home is None


def test_the_first_folder_wins_as_for_imports(site: Path, tmp_path: Path) -> None:
    own = tmp_path / "own" / "nvidia" / "cudnn"
    (own / "lib").mkdir(parents=True)
    found = cuda_folders([tmp_path / "own", site], {}, usual=tmp_path / "none")
    assert found.cudnn == own
    assert site / "nvidia" / "cudnn" / "lib" not in found.libraries
    assert site / "nvidia" / "nccl" / "lib" in found.libraries


def test_where_the_compiler_is(site: Path, tmp_path: Path) -> None:
    given, on_path, usual = (with_nvcc(tmp_path / name) for name in ("given", "on_path", "usual"))
    environment = {"CUDA_HOME": str(given), "PATH": str(on_path / "bin")}
    assert cuda_folders([site], environment, usual=usual).home == given
    assert cuda_folders([site], {"PATH": str(on_path / "bin")}, usual=usual).home == on_path.resolve()
    assert cuda_folders([site], {}, usual=usual).home == usual
    with_nvcc(site / "nvidia" / "cu13")
    assert cuda_folders([site], {}, usual=tmp_path / "none").home == site / "nvidia" / "cu13"


def test_environments(site: Path, tmp_path: Path) -> None:
    folders = cuda_folders([site], {}, usual=with_nvcc(tmp_path / "cuda"))
    base = {"LD_LIBRARY_PATH": "/held", "PATH": "/bin", "PYTHONPATH": "", "OTHER": "1"}
    run = run_environment(base, folders, python_path=["/extra"])
    libraries = ":".join(map(str, folders.libraries))
    assert run["LD_LIBRARY_PATH"] == f"{libraries}:/held"
    assert run["PYTHONPATH"] == "/extra"
    assert run["CUDNN_PATH"] == str(folders.cudnn)
    assert run["OTHER"] == "1"
    assert "CPLUS_INCLUDE_PATH" not in run
    build = build_environment(base, folders, architectures="9.0 10.0", jobs=3)
    assert build["CPLUS_INCLUDE_PATH"] == ":".join(map(str, folders.includes))
    assert build["LIBRARY_PATH"] == libraries
    assert (build["MAMBA_FORCE_BUILD"], build["CAUSAL_CONV1D_FORCE_BUILD"]) == ("TRUE", "TRUE")
    assert (build["MAX_JOBS"], build["TORCH_CUDA_ARCH_LIST"], build["NVTE_CUDA_ARCHS"]) == ("3", "9.0 10.0", "90;100")
    assert build["CUDA_HOME"] == str(tmp_path / "cuda")
    assert build["PATH"] == f"{tmp_path / 'cuda' / 'bin'}:/bin"
    assert base["LD_LIBRARY_PATH"] == "/held", "what was given is not changed"
    again = build_environment(build, folders)
    assert again["LD_LIBRARY_PATH"] == build["LD_LIBRARY_PATH"], "nothing twice"


def test_a_machine_without_any_of_it(tmp_path: Path) -> None:
    nothing = cuda_folders([tmp_path], {}, usual=tmp_path)
    assert run_environment({"A": "b"}, nothing) == {"A": "b"}
    assert "CUDA_HOME" not in build_environment({}, nothing)


def fill(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text("")
    return folder


SOURCES = ("transformer_engine_torch-2.9.0.tar.gz", "mamba_ssm-2.2.6.tar.gz", "causal_conv1d-1.5.3.tar.gz")
WHEELS = ("megatron_core-0.19.2-cp312-cp312-manylinux_2_28_x86_64.whl", "ruamel.yaml-0.19.0-py3-none-any.whl")


def test_wheels_first_then_sources_in_order(tmp_path: Path) -> None:
    wheels, built = fill(tmp_path / "wheels", *SOURCES, *WHEELS, "README.txt"), fill(tmp_path / "built")
    steps = plan_setup(wheels, site=tmp_path / "site", built=built, installed={"torch": "2.13.0"}, python="py")
    assert [step.title for step in steps] == [
        "install megatron-core, ruamel-yaml",
        "compile causal-conv1d 1.5.3", "install causal-conv1d 1.5.3",
        "compile mamba-ssm 2.2.6", "install mamba-ssm 2.2.6",
        "compile transformer-engine-torch 2.9.0", "install transformer-engine-torch 2.9.0",
    ]  # fmt: skip
    for step in steps:
        assert {"--no-index", "--no-deps"} <= set(step.command), "nothing is fetched from elsewhere"
        assert ("--no-build-isolation" in step.command) == step.compiles
        assert step.compiles or step.command[step.command.index("--target") + 1] == str(tmp_path / "site")


def test_what_was_compiled_before_is_used(tmp_path: Path) -> None:
    wheels = fill(tmp_path / "wheels", *SOURCES)
    built = fill(tmp_path / "built", "mamba_ssm-2.2.6-cp312-cp312-linux_x86_64.whl")
    steps = plan_setup(wheels, site=tmp_path, built=built, installed={"causal-conv1d": "1.5.3"})
    assert [s.title for s in steps] == [
        "install mamba-ssm 2.2.6",
        "compile transformer-engine-torch 2.9.0",
        "install transformer-engine-torch 2.9.0",
    ]
    assert built_folder(tmp_path, "2.13.0+cu130") != built_folder(tmp_path, "2.12.0+cu130")


def test_torch_is_never_replaced(tmp_path: Path) -> None:
    names = (
        "torch-2.12.0-cp312-none-any.whl",
        "nvidia_nccl_cu13-2.1-py3-none-any.whl",
        "einops-0.8.1-py3-none-any.whl",
    )
    wheels = fill(tmp_path / "wheels", *names)
    installed = {"torch": "2.13.0", "nvidia-nccl-cu13": "2.2", "einops": "0.8.0"}
    (step,) = plan_setup(wheels, site=tmp_path, built=tmp_path, installed=installed)
    assert step.title == "install einops"
    assert plan_setup(wheels, site=tmp_path, built=tmp_path, installed={**installed, "einops": "0.8.1"}) == []


def test_a_wheel_is_taken_before_its_source(tmp_path: Path) -> None:
    wheels = fill(tmp_path / "wheels", "mamba_ssm-2.2.6.tar.gz", "mamba_ssm-2.2.6-cp312-cp312-linux_x86_64.whl")
    (step,) = plan_setup(wheels, site=tmp_path, built=tmp_path, installed={})
    assert not step.compiles


def test_from_the_usual_index(tmp_path: Path) -> None:
    installed = {"megatron-core": "0.19.2", "einops": "0.8", "psutil": "7", "transformers": "5.23"}
    (step,) = plan_setup(None, site=tmp_path, built=tmp_path, installed=installed)
    assert step.command[-3:] == ("causal-conv1d>=1.5", "mamba-ssm>=2.2.5", "transformer-engine[pytorch]>=2.5")
    full = {**installed, "causal-conv1d": "1", "mamba-ssm": "1", "transformer-engine": "1"}
    assert plan_setup(None, site=tmp_path, built=tmp_path, installed=full) == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "neither wheels nor source packages"),
        (("a-1.tar.gz", "a-2.tar.gz"), "two versions of a"),
        (("nonsense.tar.gz",), "not named like"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(SetupError, match=message):
        plan_setup(fill(tmp_path / "wheels", *names), site=tmp_path, built=tmp_path, installed={})
    with pytest.raises(SetupError, match="there is no folder"):
        plan_setup(tmp_path / "absent", site=tmp_path, built=tmp_path, installed={})


def test_names_of_files() -> None:
    assert distribution_of(Path("Ruamel.Yaml-0.19-py3-none-any.whl")) == ("ruamel-yaml", "0.19")
    assert distribution_of(Path("x/transformer_engine_torch-2.9.0.tar.gz")) == ("transformer-engine-torch", "2.9.0")
    assert installed_here()["numpy"]


def test_a_command_that_ends_badly_says_why(tmp_path: Path) -> None:
    said: list[str] = []
    good = Step("greet", (sys.executable, "-c", "import os; assert os.environ['A'] == 'b'"))
    assert run_steps([good], {"A": "b"}, said.append)[0][0] == "greet"
    bad = Step("compile x", (sys.executable, "-c", "print('nvcc: no such file'); raise SystemExit(3)"))
    with pytest.raises(SetupError, match=r"compile x: exit code 3\nnvcc: no such file"):
        run_steps([good, bad, Step("never", ("false",))], {"A": "b"}, said.append)
    assert said[-1] == "setup: compile x"
