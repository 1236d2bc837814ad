#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# scripts/setup --dry-run on made-up systems: what it finds, which archive it imitates, what it leaves alone.
set -euo pipefail
setup=$(cd "$(dirname "$0")/../.." && pwd)/scripts/setup
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset CMAKE_PREFIX_PATH PQATTN_SKIP_SETUP
export PQATTN_SETUP_ROOT
failures=0

# new_system <name> <codename>: an empty machine with apt.
new_system() {
  name=$1
  PQATTN_SETUP_ROOT=$work/$name
  mkdir -p "$PQATTN_SETUP_ROOT"/{usr/bin,usr/include,etc/apt/sources.list.d,etc/apt/preferences.d}
  echo "VERSION_CODENAME=$2" >"$PQATTN_SETUP_ROOT/etc/os-release"
  add_commands apt-get
}
add_commands() {
  local command
  for command in "$@"; do
    touch "$PQATTN_SETUP_ROOT/usr/bin/$command"
    chmod +x "$PQATTN_SETUP_ROOT/usr/bin/$command"
  done
}
add_header() {
  mkdir -p "$(dirname "$PQATTN_SETUP_ROOT/usr/include/$1")"
  echo "${2:-}" >"$PQATTN_SETUP_ROOT/usr/include/$1"
}
add_everything() {
  add_commands g++ cmake ninja gnuplot
  add_header Eigen/Core
  add_header xsimd/config/xsimd_config.hpp "#define XSIMD_VERSION_MAJOR ${1:-13}"
  add_header catch2/catch_version_macros.hpp "#define CATCH_VERSION_MAJOR 3"
  add_header benchmark/benchmark.h
  add_header nlohmann/json.hpp
  add_header CLI/CLI.hpp
  mkdir -p "$PQATTN_SETUP_ROOT/usr/lib/python3/dist-packages/numpy"
}
plan() { output=$("$setup" --dry-run "$@" 2>&1) || output="exit status $?: $output"; }
expect() {
  if ! grep -qxF -- "$1" <<<"$output"; then
    echo "FAILED $name: no line '$1' in:" && echo "$output"
    failures=$((failures + 1))
  fi
}
expect_none() {
  if grep -qF -- "$1" <<<"$output"; then
    echo "FAILED $name: '$1' in:" && echo "$output"
    failures=$((failures + 1))
  fi
}
install_line="would run: env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install -q -y \
--no-install-recommends"
everything="g++ cmake ninja-build libeigen3-dev libxsimd-dev nlohmann-json3-dev libcli11-dev libbenchmark-dev catch2 \
python3-numpy gnuplot-nox"

new_system deb822 bookworm
cat >"$PQATTN_SETUP_ROOT/etc/apt/sources.list.d/a_vendor.sources" <<'EOF'
Types: deb
URIs: http://vendor.invalid/debian/12/prod
Suites: bookworm
Components: main
Signed-By: /usr/share/keyrings/vendor.gpg
EOF
cat >"$PQATTN_SETUP_ROOT/etc/apt/sources.list.d/debian.sources" <<'EOF'
# The archive
Types: deb deb-src
# an old address
URIs: http://mirror.invalid/debian
Suites: bookworm
 bookworm-updates
Components: main contrib
signed-by: /usr/share/keyrings/debian-archive-keyring.gpg
Check-Valid-Until: no

Types: deb
URIs: http://mirror.invalid/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://disabled.invalid/debian
Suites: bookworm-backports trixie
Components: main
EOF
plan
expect "setup: missing: $everything"
expect "would write $PQATTN_SETUP_ROOT/etc/apt/sources.list.d/pqattn-extra.sources:"
expect "  | URIs: http://mirror.invalid/debian"
expect "  | Suites: bookworm-backports trixie"
expect "  | Components: main"
expect "  | signed-by: /usr/share/keyrings/debian-archive-keyring.gpg"
expect "  | Check-Valid-Until: no"
expect "would write $PQATTN_SETUP_ROOT/etc/apt/preferences.d/pqattn:"
expect "  | Pin: release o=Debian,n=trixie"
expect "  | Pin-Priority: -10"
expect "  | Package: libxsimd-dev"
expect "$install_line $everything"
expect_none vendor
expect_none disabled
plan demo
expect "  | Suites: trixie"
expect_none backports:
expect_none "libbenchmark-dev catch2"

new_system embedded_key bookworm
cat >"$PQATTN_SETUP_ROOT/etc/apt/sources.list.d/debian.sources" <<'EOF'
Types: deb
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF\abc
 -----END PGP PUBLIC KEY BLOCK-----
EOF
plan
expect "  | Signed-By: "
expect "  |  -----BEGIN PGP PUBLIC KEY BLOCK-----"
expect "  |  ."
expect "  |  mQINBF\abc"

new_system one_line bookworm
cat >"$PQATTN_SETUP_ROOT/etc/apt/sources.list" <<'EOF'
# deb http://commented.invalid/debian bookworm main
deb cdrom:[Debian GNU/Linux 12]/ bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror.invalid/debian/ bookworm main # x
deb-src http://source.invalid/debian bookworm main
deb http://mirror.invalid/debian/ bookworm-updates main
EOF
echo "deb http://vendor.invalid/mariadb/debian bookworm main" >"$PQATTN_SETUP_ROOT/etc/apt/sources.list.d/vendor.list"
echo "deb http://flat.invalid ./" >"$PQATTN_SETUP_ROOT/etc/apt/sources.list.d/flat.list"
plan
options="[arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
expect "would write $PQATTN_SETUP_ROOT/etc/apt/sources.list.d/pqattn-extra.list:"
expect "  | deb $options http://mirror.invalid/debian/ bookworm-backports main"
expect "  | deb $options http://mirror.invalid/debian/ trixie main"
for word in vendor source.invalid commented cdrom; do
  expect_none $word
done

new_system plain_one_line bookworm
echo "deb http://mirror.invalid/debian bookworm main" >"$PQATTN_SETUP_ROOT/etc/apt/sources.list"
plan test
expect "  | deb http://mirror.invalid/debian trixie main"
expect_none gnuplot

new_system suites_present bookworm
echo "deb http://mirror.invalid/debian bookworm main" >"$PQATTN_SETUP_ROOT/etc/apt/sources.list"
cat >"$PQATTN_SETUP_ROOT/etc/apt/sources.list.d/more.list" <<'EOF'
deb http://mirror.invalid/debian bookworm-backports main
deb http://mirror.invalid/debian trixie main
EOF
plan
expect_none pqattn-extra
expect_none "-10"
expect "  | Package: libxsimd-dev"

new_system no_archive bookworm
plan
expect "setup: found no bookworm archive in /etc/apt to imitate for bookworm-backports trixie"
expect_none pqattn-extra
expect_none "  |"

new_system trixie trixie
plan clang test
expect_none "would write"
expect "$install_line clang ${everything% *}"

new_system noble noble
plan
expect_none "would write"
expect "$install_line $everything"

new_system complete bookworm
add_everything
plan
expect "setup: everything is there"
expect_none "would"

new_system old_xsimd bookworm
echo "deb http://mirror.invalid/debian bookworm main" >"$PQATTN_SETUP_ROOT/etc/apt/sources.list"
add_everything 8
plan
expect "setup: missing: libxsimd-dev"
expect "  | deb http://mirror.invalid/debian trixie main"
expect_none "backports main"

new_system no_apt rolling
rm "$PQATTN_SETUP_ROOT/usr/bin/apt-get"
plan build
expect "exit status 3: setup: missing: ${everything%% catch2*}"
plan nonsense
expect "exit status 2: setup: unknown argument nonsense (see scripts/setup --help)"
PQATTN_SKIP_SETUP=1 plan
[ -z "$output" ] || { echo "FAILED skip: $output" && failures=$((failures + 1)); }

[ "$failures" -eq 0 ] && echo "all as expected"
