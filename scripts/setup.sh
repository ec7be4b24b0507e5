#!/usr/bin/env bash
# setup.sh [build] [test] [lint]: bring what each stage lacks, as root or by sudo; safe to run again.
#   build  compilers and libraries (Debian packages), the .venv, ONNX Runtime's C headers and Highway's source
#   test   the ONNX Runtime releases that the tests run against, unpacked side by side
#   lint   clang-format and clang-tidy 19
# Downloads lie in $KVSHARE_DEPS (default build/deps) and .venv; the system is never upgraded.
set -euo pipefail
cd "$(dirname "$0")/.."
DEPS=${KVSHARE_DEPS:-build/deps}
TEST_ORT_VERSIONS=(1.24.4 1.27.0 1.30.0)  # beside the .venv's own
mkdir -p "$DEPS"
DEPS=$(cd "$DEPS" && pwd)

as_root() { if [[ $(id -u) = 0 ]]; then "$@"; else sudo "$@"; fi; }

install_packages() {
  local missing=() p
  for p in "$@"; do
    dpkg-query -W -f '${db:Status-Abbrev}' "$p" 2>/dev/null | grep -q '^ii' || missing+=("$p")
  done
  [[ ${#missing[@]} = 0 ]] && return
  echo "setup: installing ${missing[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$DEPS/apt.log" 2>&1 ||
    { tail -20 "$DEPS/apt.log" >&2; exit 1; }
}

# A private apt source for Debian trixie under $DEPS/apt: its packages are downloaded and unpacked, never installed.
trixie() {
  local d=$DEPS/apt mirror
  local options=(-o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$d/etc" -o Dir::State="$d/state"
    -o Dir::State::status="$d/status" -o Dir::Cache="$d/cache" -o APT::Sandbox::User=)
  if [[ ! -e $d/ready ]]; then
    find_mirror() { apt-get indextargets --format '$(REPO_URI) $(RELEASE)' | awk '$2=="bookworm"{print $1;exit}'; }
    mirror=$(find_mirror)
    if [[ -z $mirror ]]; then as_root apt-get update -qq; mirror=$(find_mirror); fi
    [[ -n $mirror ]] || { echo "setup: apt knows no Debian 12 (bookworm) source; kvshare builds on Debian 12" >&2; exit 1; }
    mkdir -p "$d/etc" "$d/state/lists/partial" "$d/cache/archives/partial"
    : >"$d/status"
    printf 'Types: deb deb-src\nURIs: %s\nSuites: trixie\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' \
      "$mirror" >"$d/etc/trixie.sources"
    apt-get "${options[@]}" update -qq
    touch "$d/ready"
  fi
  apt-get "${options[@]}" "$@"
}

fetch_ort_headers() {
  [[ -e $DEPS/ort/include/onnxruntime_c_api.h ]] && return
  echo "setup: ONNX Runtime C headers (Debian trixie)"
  local work=$DEPS/ort.part
  rm -rf "$work"; mkdir -p "$work"
  (cd "$work" && trixie download -qq libonnxruntime-dev && dpkg-deb -x libonnxruntime-dev_*.deb .)
  mkdir -p "$DEPS/ort/include"
  find "$work" -name 'onnxruntime*.h' -exec cp {} "$DEPS/ort/include/" \;
  rm -rf "$work"
}

fetch_highway() {
  [[ -e $DEPS/highway/CMakeLists.txt ]] && return
  echo "setup: Highway's source (Debian trixie)"
  local work=$DEPS/highway.part
  rm -rf "$work"; mkdir -p "$work/src"
  (cd "$work" && trixie source -qq --download-only highway)
  tar -xf "$work"/highway_*.orig.tar.* -C "$work/src" --strip-components=1
  rm -rf "$DEPS/highway"
  mv "$work/src" "$DEPS/highway"
  rm -rf "$work"
}

make_venv() {
  [[ -x .venv/bin/python ]] || { echo "setup: .venv"; /usr/bin/python3 -m venv .venv; }
  local stamp=.venv/requirements.stamp
  cmp -s scripts/requirements.txt "$stamp" && return
  .venv/bin/pip install -q --disable-pip-version-check -r scripts/requirements.txt
  cp scripts/requirements.txt "$stamp"
}

fetch_ort_releases() {
  local v d
  for v in "${TEST_ORT_VERSIONS[@]}"; do
    d=$DEPS/ort-releases/$v
    [[ -d $d/onnxruntime ]] && continue
    echo "setup: onnxruntime $v"
    rm -rf "$d.part"
    .venv/bin/pip install -q --disable-pip-version-check --no-deps --target "$d.part" "onnxruntime==$v"
    rm -rf "$d"; mv "$d.part" "$d"
  done
}

fetch_lint() {
  local stamp=.venv/lint.stamp
  [[ -e $stamp ]] && return
  .venv/bin/pip install -q --disable-pip-version-check clang-format==19.1.7 clang-tidy==19.1.0
  touch "$stamp"
}

[[ $# -gt 0 ]] || set -- build
for stage in "$@"; do
  case $stage in
    build)
      install_packages g++ cmake ninja-build make ccache dpkg-dev libfmt-dev libcli11-dev libgtest-dev libgmock-dev libbenchmark-dev \
        libprotobuf-dev protobuf-compiler libzip-dev python3-venv
      make_venv; fetch_ort_headers; fetch_highway ;;
    test) make_venv; fetch_ort_releases ;;
    lint) make_venv; fetch_lint ;;
    *) echo "setup: unknown stage '$stage'; have build, test, lint" >&2; exit 64 ;;
  esac
done
