#!/usr/bin/env bash
# Create the Python environment of a backend and activate it; with --demo or --test, use it.
# It may be run again at any time, also after an interruption.

_mlperf_usage() {
  cat <<'USAGE'
Usage: source setup.sh [OPTIONS]     create the environment and activate it in this shell
       ./setup.sh [OPTIONS]          the same; on a terminal, in a new shell
       ./setup.sh --demo [OPTIONS]   create it and run the main job on the bundled model
       ./setup.sh --test [OPTIONS]   create it and run all checks and tests

  --backend NAME    pytorch, vllm or sglang (default: $MLPERF_BACKEND, else the container's, else
                    the one with an environment or package on this machine, else pytorch; --demo
                    does not search this machine; --test: all)
  --device DEVICE   auto, cpu or cuda (default: auto: the container's, else cuda if nvidia-smi
                    lists a GPU)
  --venv DIR        directory of the environment (default: the container's, else
                    .venv-BACKEND-DEVICE next to this script)
  --python PATH     Python interpreter, 3.11 or newer (default: the first one found)
  --index URL       additional package index, such as PyTorch's index of builds for CPUs
  --offline WHEELS  install from this directory of wheels only, without network access
  --force           delete the environment and create it again
  --verify          import the engine, list the GPUs, run LoadGen for a second
  --demo            MLPerf Offline on the bundled model, accuracy then performance, and a table
  --test            ruff, mypy, shellcheck and pytest, as in CI, in every engine's environment;
                    as root, installs chromium by apt-get if there is none
  --fast            with --test: fast tests only; without --backend, only in PyTorch's environment
  --help            show this text

Packages are installed by uv, with pip's configuration; where it can't, by pip.
USAGE
}

_mlperf_fail() {
  echo "setup.sh: $*" >&2
  exit 2
}

_mlperf_find_python() {
  local candidate
  for candidate in "$1" python3 python3.11 python3.12 python3.13 python3.14 python; do
    [ -n "$candidate" ] || continue
    if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
    [ "$candidate" != "$1" ] || _mlperf_fail "--python $1: not a Python 3.11 or newer with venv"
  done
  _mlperf_fail "no Python 3.11 or newer with the venv module found: pass one with --python PATH"
}

# Copied into every environment: pip could not build it without network access.
_mlperf_copied=requirements/torchrun-nodes

# Prints all that an installation depends on: the files, and the directories of this tree in them.
_mlperf_inputs() { # REQUIREMENTS...
  cat requirements/base.txt "$@"
  local folder
  { echo "$_mlperf_copied" && sed -n 's|^\./||p' "$@"; } | while read -r folder; do
    find "$folder" -type f -not -path '*/__pycache__/*' | LC_ALL=C sort | xargs cat
  done
}

# Installs the packages of the requirements files, unless the stamp has the checksum of the same
# ones. Packages of a .nodeps.txt are installed last, without their dependencies.
_mlperf_install() { # VENV STAMP_NAME REQUIREMENTS...
  local venv=$1 stamp=$1/.complete-$2 checksum
  shift 2
  checksum=$(_mlperf_inputs "$@" | cksum)
  if [ "$(cat "$stamp" 2>/dev/null)" = "$checksum" ]; then
    return
  fi
  [ -w "$venv" ] || _mlperf_fail "$venv was made for other requirements than $* and is read-only:" \
    "rebuild the image (./launch.sh --build), or choose another --venv DIR"
  rm -f "$stamp"
  echo "setup.sh: installing $* into $venv" >&2
  local file files=() nodeps=() sources=()
  [ -z "$index" ] || sources+=(--extra-index-url "$index")
  [ -z "$offline" ] || sources+=(--no-index --find-links "$offline")
  for file in "$@"; do
    case $file in
      *.nodeps.txt) nodeps+=(-r "$file") ;;
      *) files+=(-r "$file") ;;
    esac
  done
  # --demo and --test import few of the modules, and leave compiling them to the import.
  _mlperf_uv "$venv" ||
    _mlperf_run_installer "$venv/bin/python" -m pip install --disable-pip-version-check \
      ${task:+--no-compile} ||
    _mlperf_fail "the installation failed, see the lines above; run the same command to continue it"
  cp -R "$_mlperf_copied/." "$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')"
  echo "$checksum" >"$stamp"
}

# pip brings uv where it is missing; if it can't, it brings all the rest as well.
_mlperf_uv() { # VENV
  local python=$1/bin/python options=()
  [ -n "$task" ] || options+=(--compile-bytecode)
  if ! command -v uv >/dev/null && [ ! -x "$1/bin/uv" ]; then
    [ -z "$offline" ] || compgen -G "$offline/uv-*.whl" >/dev/null || return
    "$python" -m pip install --disable-pip-version-check --quiet "${sources[@]}" \
      -r requirements/uv.txt 2>/dev/null || return
  fi
  _mlperf_run_installer "$python" requirements/uv_install.py "${options[@]}" && return
  echo "setup.sh: uv could not install the packages; trying pip" >&2
  return 1
}

_mlperf_run_installer() { # COMMAND...
  "$@" --quiet "${sources[@]}" "${files[@]}" &&
    { [ ${#nodeps[@]} -eq 0 ] || "$@" --quiet "${sources[@]}" --no-deps "${nodeps[@]}"; }
}

# Sets those of $backend, $device and $venv that no option has set.
_mlperf_choose() {
  local container_venv=${venv:-${MLPERF_VENV:-/opt/mlperf/venv}} kind candidates
  if [ "$task" != test ]; then # which creates the environments of all engines
    backend=${backend:-${MLPERF_BACKEND:-}}
    if [ -f "$container_venv/.mlperf" ]; then
      kind=$(cat "$container_venv/.mlperf") # such as vllm-cuda
      backend=${backend:-${kind%-*}}
      [ "$device" != auto ] || device=${kind##*-}
      venv=$container_venv
    fi
  fi
  if [ "$device" = auto ]; then
    device=cpu
    if nvidia-smi -L >/dev/null 2>&1; then device=cuda; fi
  fi
  if [ -z "$backend" ] && [ -z "$task" ]; then
    read -ra candidates <<<"$(_mlperf_candidates)"
    [ ${#candidates[@]} -le 1 ] || _mlperf_fail "there are several engines on this machine:" \
      "choose one with --backend or MLPERF_BACKEND: ${candidates[*]}"
    backend=${candidates[0]:-}
  fi
}

# Prints the engines that have an environment here or a package in this Python, in one line.
_mlperf_candidates() {
  local name
  {
    for name in pytorch vllm sglang; do
      [ ! -f ".venv-$name-$device/.complete-run" ] || echo "$name"
    done
    "${python:-python3}" -c 'if True:
      from importlib.util import find_spec
      print(*filter(find_spec, ("vllm", "sglang")), sep="\n")' 2>/dev/null || true
  } | sort -u | xargs
}

# Creates the environment of an engine on $device; if $task is "test", with the tests' packages.
_mlperf_environment() { # VENV BACKEND
  local venv=$1 backend=$2 kind
  local requirements=("requirements/$backend-$device.txt")
  [ -f "${requirements[0]}" ] ||
    _mlperf_fail "no requirements for --backend $backend --device $device;" \
      "there are: $(cd requirements && echo ./*-c*.txt | sed 's|\./||g; s|[^ ]*nodeps.txt *||g; s|\.txt||g')"
  if [ -f "requirements/$backend-$device.nodeps.txt" ]; then
    requirements+=("requirements/$backend-$device.nodeps.txt")
  fi
  kind=$(cat "$venv/.mlperf" 2>/dev/null || echo "$backend-$device")
  [ "$kind" = "$backend-$device" ] || [ -n "$force" ] ||
    _mlperf_fail "$venv is for $kind, not $backend-$device: choose another --venv DIR, replace it" \
      "with --force, or start the container: ./launch.sh --backend $backend --device $device"
  # An interpreter that does not start is left over from an interruption.
  if [ -n "$force" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    local base_python
    base_python=$(_mlperf_find_python "$python")
    echo "setup.sh: creating $venv with $("$base_python" --version)" >&2
    rm -rf "$venv"
    "$base_python" -m venv "$venv"
  fi
  if [ ! -f "$venv/.mlperf" ]; then
    echo "export MLPERF_BACKEND=$backend" >>"$venv/bin/activate"
    echo "$backend-$device" >"$venv/.mlperf"
  fi
  if [ "$task" = test ]; then # all in one call, which is faster
    _mlperf_install "$venv" test "${requirements[@]}" requirements/test.txt
    [ ! -w "$venv" ] || _mlperf_inputs "${requirements[@]}" | cksum >"$venv/.complete-run"
  else
    _mlperf_install "$venv" run "${requirements[@]}"
  fi
}

_mlperf_activate() { # VENV BACKEND
  VIRTUAL_ENV=$(cd "$1" && pwd)
  export VIRTUAL_ENV PATH=$VIRTUAL_ENV/bin:$PATH MLPERF_BACKEND=$2
}

# Prints versions and GPUs, and runs LoadGen; fails if anything does not work.
_mlperf_verify() { # BACKEND DEVICE
  local run=(python run_mlperf.py --backend echo --device cpu --mode server
    --model data/tiny/model --input-file data/tiny/final_output.pkl
    --min-duration 1000 --min-query-count 1 --target-qps 200)
  python - "$1" "$2" <<'PYTHON'
import sys
from importlib import import_module
from importlib.metadata import version

backend, device = sys.argv[1:]
import_module(
    {
        "pytorch": "ref_dsinfer.engine",
        "vllm": "vllm.v1.engine.async_llm",
        "sglang": "sglang.srt.entrypoints.http_server",
    }[backend]
)
import torch

engine = "" if backend == "pytorch" else f" {import_module(backend).__version__}"
gpus = [torch.cuda.get_device_name(gpu) for gpu in range(torch.cuda.device_count())]
print(f"engine   {backend}{engine}, torch {torch.__version__}, Python {sys.version.split()[0]}")
print(f"GPUs     {', '.join(gpus) or 'none'}")
print(f"LoadGen  {version('mlcommons-loadgen')}", flush=True)
if device == "cuda" and not gpus:
    sys.exit("setup.sh: torch sees no GPU: does nvidia-smi list one, and is its driver new enough?")
PYTHON
  (
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    "${run[@]}" --output-dir "$folder" >"$folder/output" 2>&1 ||
      { cat "$folder/output" >&2 && exit 1; }
    sed -n 's|^ *samples/s *|         echo engine for one second, samples/s: |p' "$folder/output"
  )
}

_mlperf_demo() { # BACKEND DEVICE
  local out=mlperf_results/demo
  local run=(python run_mlperf.py --backend "$1")
  # an address, since a container may not be able to resolve its own name
  [ "$1" != pytorch ] || run=(torchrun --nproc_per_node=2 --local-addr=127.0.0.1 run_mlperf_mpi.py)
  run+=(--mode offline --model data/tiny/model --device "$2"
    --input-file data/tiny/final_output.pkl --output-dir "$out")
  "${run[@]}" --accuracy
  "${run[@]}" --min-duration 0 --min-query-count 240 # a full run takes ten minutes or more
  python -m mlperf.summary "$out"
}

# Prints how many tests run at once: one more than there are cores, as each waits now and then, but
# one for each 4 GiB of memory at most, and 8.
_mlperf_workers() {
  local workers memory
  workers=$(($(nproc) + 1))
  memory=$(awk '/^MemTotal/ { print int($2 / 4194304) }' /proc/meminfo)
  [ "$workers" -le "$memory" ] || workers=$memory
  [ "$workers" -le 8 ] || workers=8
  echo $((workers > 1 ? workers : 1))
}

_mlperf_test() { # BACKEND
  local tests=(python -m pytest --numprocesses "$(_mlperf_workers)" --dist loadfile)
  tests+=(--no-loadscope-reorder)
  if [ "$1" = pytorch ]; then
    ruff check .
    ruff format --check .
    shellcheck launch.sh setup.sh .ci/run backends/*.sh
    mypy & # the first time it takes half a minute of one core
    local types=$!
    "${tests[@]}" ${fast:+-m "not slow"}
    wait "$types" || _mlperf_fail "mypy has found errors: see its lines above"
  else
    "${tests[@]}" -m "$1${fast:+ and not slow}"
  fi
}

# The tests of pages open them in a browser; where it can't be installed, they are skipped.
_mlperf_browser() {
  if command -v chromium >/dev/null || [ -n "$offline" ]; then return; fi
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup.sh: installing chromium, for the tests of pages" >&2
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes \
      --no-install-recommends chromium fonts-dejavu-core; } >/dev/null && return
  fi
  echo "setup.sh: no chromium: tests that open pages in it will be skipped" >&2
}

# Runs in a subshell, so that the options and variables of a sourcing shell do not change. Writes
# the environment's directory to descriptor 3.
_mlperf_main() (
  set -euo pipefail
  backend='' device=auto venv='' python='' index='' offline='' force='' verify='' task='' fast=''
  while [ $# -gt 0 ]; do
    case $1 in
      --backend | --device | --venv | --python | --index | --offline)
        [ $# -ge 2 ] || _mlperf_fail "$1 needs a value"
        printf -v "${1#--}" %s "$2"
        shift
        ;;
      --force | --verify | --fast) printf -v "${1#--}" 1 ;;
      --demo | --test) task=${1#--} ;;
      --help | -h) _mlperf_usage >&2 && exit 0 ;;
      *) _mlperf_fail "unknown option $1 (see --help)" ;;
    esac
    shift
  done
  if [ -n "$offline" ]; then
    compgen -G "$offline/*.whl" >/dev/null || _mlperf_fail "--offline $offline: no wheels in it"
    offline=$(cd "$offline" && pwd)
  fi
  [ -z "$fast" ] || [ "$task" = test ] || _mlperf_fail "--fast requires --test"
  # Else each of the processes below would compile again all that it imports.
  [ -z "$task" ] || unset PYTHONDONTWRITEBYTECODE
  cd "$(dirname "${BASH_SOURCE[0]}")"
  _mlperf_choose
  if [ "$task" = test ]; then
    [ -z "$venv" ] || [ -n "$backend" ] || _mlperf_fail "--test --venv DIR requires --backend NAME"
    local all=("$backend")
    if [ -z "$backend" ]; then
      all=(pytorch)
      [ -n "$fast" ] || all+=(vllm sglang)
    fi
    # Side by side, also with the tests of the engines before. Each is a process group of its own,
    # which ends with this one.
    local jobs=() at
    trap 'kill -- "${jobs[@]/#/-}" 2>/dev/null || true' EXIT
    trap 'exit 130' INT TERM
    set -m
    [ -n "$fast" ] || _mlperf_browser
    for backend in "${all[@]}"; do
      _mlperf_environment "${venv:-.venv-$backend-$device}" "$backend" &
      jobs+=($!)
    done
    set +m
    for at in "${!all[@]}"; do
      backend=${all[at]}
      wait "${jobs[at]}" || _mlperf_fail "there is no environment of $backend: see the lines above"
      (
        _mlperf_activate "${venv:-.venv-$backend-$device}" "$backend"
        _mlperf_test "$backend"
      )
    done
    return
  fi
  backend=${backend:-pytorch}
  venv=${venv:-.venv-$backend-$device}
  _mlperf_environment "$venv" "$backend"
  _mlperf_activate "$venv" "$backend"
  [ -z "$verify" ] || _mlperf_verify "$backend" "$device"
  case $task in
    demo) _mlperf_demo "$backend" "$device" ;;
    *)
      [ -e data/final_output.pkl ] ||
        echo "setup.sh: the benchmark's data set and model are fetched with: python -m data.fetch"
      echo "$VIRTUAL_ENV" >&3
      ;;
  esac
)

{ _mlperf_venv=$(_mlperf_main "$@" 3>&1 1>&4); } 4>&1
_mlperf_status=$?
if [ "${BASH_SOURCE[0]}" != "$0" ]; then
  # shellcheck source=/dev/null
  [ -z "$_mlperf_venv" ] || source "$_mlperf_venv/bin/activate"
  return $_mlperf_status
elif [ -n "$_mlperf_venv" ] && [ -t 0 ] && [ -t 1 ]; then
  echo "setup.sh: starting a shell with $_mlperf_venv activated; leave it with exit" >&2
  exec bash --rcfile <(cat ~/.bashrc 2>/dev/null; echo "source '$_mlperf_venv/bin/activate'")
elif [ -n "$_mlperf_venv" ]; then
  echo "setup.sh: activate the environment with: source $_mlperf_venv/bin/activate"
fi
exit $_mlperf_status
