#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# check_units.sh <nm> <objdump> <shared|none> <object>...
# The objects are compiled from the same headers for different instruction sets, and the linker keeps one copy of every
# weak symbol that two of them define. Rule: such a symbol, be it the library's or std's, may be shared only if its code
# is the same for every processor: no vector registers and none of the instructions that came with them. `shared` expects
# violations, for an object made to violate the rule.
set -euo pipefail
nm=$1 objdump=$2 expected=$3
shift 3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for object in "$@"; do
  "$nm" --defined-only "$object" | awk '$2 ~ /^[VWu]$/ { print $3 }' | sort -u
done | sort | uniq -d >"$work/shared"

# Functions of any object that depend on the processor.
for object in "$@"; do
  "$objdump" -d --no-show-raw-insn "$object"
done | awk '
  /^[0-9a-f]+ <.*>:$/ { name = $2; sub(/^</, "", name); sub(/>:$/, "", name); next }
  /%[xyz]mm[0-9]|%k[0-7]/ { print name; next }
  $2 ~ /^(andn|bextr|blsi|blsr|blsmsk|bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx|lzcnt|tzcnt|popcnt|movbe|adcx|adox)[lq]?$/ {
    print name
  }' | sort -u >"$work/processor"

comm -12 "$work/shared" "$work/processor" >"$work/wrong"
echo "$(wc -l <"$work/shared") shared symbols, $(wc -l <"$work/wrong") of them with code for one processor"
c++filt <"$work/wrong" 2>/dev/null || cat "$work/wrong"
case $expected in
  none) [ ! -s "$work/wrong" ] ;;
  shared) [ -s "$work/wrong" ] ;;
  *) exit 2 ;;
esac
