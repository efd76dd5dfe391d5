#!/usr/bin/env bash
# gpu-run.sh - runs tests and benches out of a bundle (scripts/gpu-bundle.cjs) on a GPU machine without Node or network.
#
#   bash .bundle/gpu-run.sh OUT SECONDS SET...      a SET with spaces in quotes
#
#   OUT       folder for logs; made if missing. One log per set, results.xml-s of the tests, summary.txt
#   SECONDS   the most that one set may take; it is killed then, its log stays
#   SET       tests            every operation against the CPU backend, the runtime (test/gpu without `model`)
#             tests:NAME,...   only these files of test/gpu; "tests:NAME,... --test-name-pattern=RE" only such tests of them
#             golden           whole models (test/gpu/model), and with known mistakes in them (test/gpu/mutations)
#             ptx              the wrappers of Hopper's instructions (test/gpu/ptx.cu); needs a Hopper GPU
#             bench[:WHAT]     mla bench WHAT (default "kernels"): "bench:decode --shape v2-lite --batch 1,8,32"
#             gpu-bench[:ARGS] scripts/gpu-bench.cjs, as `npm run bench:gpu` runs it: "gpu-bench:--record --runs 1"; the
#                              figures are OUT/GPU.jsonl
#             sanitize[:TOOL+...[:N]]  each kernel of the addon in a small call, under compute-sanitizer's tools (default
#                              memcheck; racecheck, initcheck, synccheck), all tools at the same time, each in N processes
#                              (default 1) that share the calls; then which kernels no call has launched. Records the calls
#                              first, once for all commands with this bundle (test/gpu/recording.ts)
#             mla:ARGS         any mla command
#             run:FILE         node FILE of the compiled tree (lib/..., test/...), for probes
#
# Golden checkpoints and the bundled model come from the bundle if it has them, else from the folder it is started in.
# The exit code is 1 when any set failed. The last lines printed are the summary.
set -u

bundle=$(cd "$(dirname "$0")" && pwd)
here=$PWD
if [ $# -lt 3 ]; then sed -n '2,/^set -u/p' "$0" | sed '$d' >&2; exit 2; fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
limit=$2
shift 2

# The machine may lack xz; Python has the same library.
unpack() {
  if command -v xz >/dev/null 2>&1; then xz -dc "$1"
  else python3 -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), sys.stdout.buffer)' "$1"; fi
}

key=$(cksum < "$bundle/bundle.json" | cut -d' ' -f1)
home=/tmp/node-mla-$key
app=$home/app
node=$home/node
if [ ! -e "$home/ready" ]; then
  rm -rf "$home"; mkdir -p "$app"
  unpack "$bundle/node.xz" > "$node" && chmod +x "$node" || { echo "gpu-run: node.xz cannot be unpacked" >&2; exit 1; }
  unpack "$bundle/app.tar.xz" | tar -C "$app" -xf - || { echo "gpu-run: app.tar.xz cannot be unpacked" >&2; exit 1; }
  if [ -e "$bundle/data.tar.xz" ]; then unpack "$bundle/data.tar.xz" | tar -C "$app" -xf -
  else
    mkdir -p "$app/test" "$app/models"
    ln -sfn "$here/test/golden" "$app/test/golden"
    ln -sfn "$here/models/kjv-10m" "$app/models/kjv-10m"
  fi
  touch "$home/ready"
fi
for data in test/golden models/kjv-10m; do
  [ -e "$app/$data/." ] || echo "gpu-run: $data is neither in the bundle nor in $here; what needs it will fail" >&2
done
mkdir -p "$home/bin" && ln -sfn "$node" "$home/bin/node"
export PATH="$home/bin:$PATH:/usr/local/cuda/bin"
export NO_COLOR=1

summary=$out/summary.txt
{
  grep -E '"(commit|node|archs|made)"' "$bundle/bundle.json"
  "$node" --version
  command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem --format=csv 2>&1
  date -u +%FT%TZ
} | tee "$summary"

failed=0
# run NAME COMMAND...: the log is NAME.log, its end is shown when the command failed.
run() {
  local name=$1 began code
  shift
  began=$(date +%s)
  (cd "$app" && timeout -k 10 "$limit" "$@") > "$out/$name.log" 2>&1
  code=$?
  printf '%-28s exit %-4s %5s s' "$name" "$code" "$(($(date +%s) - began))" | tee -a "$summary"
  [ "$code" = 124 ] && printf '  stopped after %s s' "$limit" | tee -a "$summary"
  echo | tee -a "$summary"
  if [ "$code" != 0 ]; then failed=1; fi
  return "$code"
}

# Test files as node --test takes them; NAME,NAME or "all but whole models".
test_files() {
  local name
  if [ -n "$1" ]; then for name in ${1//,/ }; do echo "$app/test/gpu/$name.test.js"; done
  else
    for name in "$app"/test/gpu/*.test.js; do
      case ${name##*/} in model.test.js | mutations.test.js) ;; *) echo "$name" ;; esac
    done
  fi
}

node_tests() {
  local name=$1
  shift
  run "$name" "$node" --test --test-concurrency=1 --expose-gc \
    --test-reporter=spec --test-reporter-destination=stdout \
    --test-reporter=junit --test-reporter-destination="$out/$name.xml" "$@"
  local code=$?
  grep -E '^ℹ (tests|pass|fail|cancelled)' "$out/$name.log" | tr '\n' ' ' | sed 's|$|\n|' | tee -a "$summary"
  [ "$code" = 0 ] && return
  if grep -q 'failing tests:' "$out/$name.log"; then sed -n '/failing tests:/,$p' "$out/$name.log" | head -150
  else tail -20 "$out/$name.log"; fi
}

# The addon's kernels that the tests of LOG... have not launched (they print "kernel NAME"); needs cuobjdump.
coverage() {
  local name=$1 all=$out/kernels.txt missing=$out/kernels-missing-$1.txt
  shift
  command -v cuobjdump >/dev/null 2>&1 || { echo "$name: no cuobjdump, so no list of kernels" | tee -a "$summary"; return; }
  [ -s "$all" ] || cuobjdump --dump-elf-symbols "$app/build/Release/node_mla.node" |
    awk '/STO_ENTRY/ { print $NF }' | LC_ALL=C sort -u > "$all"
  sed -n 's/^kernel \(_Z[^ ]*\)$/\1/p' "$@" | LC_ALL=C sort -u | LC_ALL=C comm -23 "$all" - > "$missing"
  echo "$name: $(($(wc -l < "$all") - $(wc -l < "$missing"))) of $(wc -l < "$all") kernels launched" | tee -a "$summary"
  if command -v cu++filt >/dev/null 2>&1; then cu++filt < "$missing"; else cat "$missing"; fi | sed 's/^/  not launched: /'
}

# racecheck blames right programs that are built on orders that it does not follow, and so the kernels that are
# (docs/gpu-tests.md).
racecheck_unasked='product_ring|product_split|product_wgmma|mla_decode_few|mla_decode_wide|resident_kernel|route_large_one'
racecheck_blames_right_programs() {
  local which blamed=""
  for which in relay refill handover detour; do
    (cd "$app" && compute-sanitizer --tool racecheck --error-exitcode 99 build/programs/seeded-bugs "racecheck-$which") \
      > "$out/seeded-racecheck-$which.log" 2>&1 || blamed="$blamed $which"
  done
  echo "racecheck blames these right programs:${blamed:- none, so look at all kernels again}" | tee -a "$summary"
}

# A bug that the tool must find, or nothing that it says counts.
finds_its_bug() {
  local tool=$1
  (cd "$app" && compute-sanitizer --tool "$tool" --error-exitcode 99 build/programs/seeded-bugs "$tool") \
    > "$out/seeded-$tool.log" 2>&1
  if [ $? != 99 ]; then
    echo "sanitize: $tool does not find the bug made for it (seeded-$tool.log)" | tee -a "$summary"
    return 1
  fi
  echo "$tool finds the bug made for it: $(grep -m 1 -E '===== (Invalid|Error|Uninit|Barrier|Divergent|Race|ERROR)' \
    "$out/seeded-$tool.log" | cut -c1-100)" | tee -a "$summary"
  [ "$tool" != racecheck ] || racecheck_blames_right_programs
}

# Small calls that launch every kernel that the tests reach, by running those without a tool.
record_calls() {
  local name share running="" one code=0
  [ ! -e "$home/calls/complete" ] || return 0
  rm -rf "$home/calls"
  # As many processes as a file takes to record within seconds.
  for name in attention:5 matrix:5 matrix-experts:2 resident-step:1 router:1 rows:1 sampling:1; do
    for ((share = 0; share < ${name#*:}; share++)); do
      NODE_MLA_TEST_RECORD=$home/calls NODE_MLA_TEST_SHARE=$share/${name#*:} \
        run "record-${name%:*}-$share" "$node" --expose-gc "$app/test/gpu/${name%:*}.test.js" &
      running="$running $!"
    done
  done
  for one in $running; do wait "$one" || code=1; done
  [ "$code" = 0 ] && touch "$home/calls/complete" && return
  echo "sanitize: a recording failed; what it has recorded is used" | tee -a "$summary"
  return 1
}

# Whether LOG is of a racecheck that ended and has nothing but warnings to say (docs/gpu-tests.md has them).
only_warnings() { grep -q 'RACECHECK SUMMARY: .*(0 errors' "$1" && ! grep -q '^FAILED call' "$1"; }

# sanitize TOOL N: N processes share the calls.
sanitize() {
  local tool=$1 shards=$2 name=sanitize-$1 without=() code=0 shard seeded running="" one
  [ "$tool" != racecheck ] || without=("$racecheck_unasked")
  finds_its_bug "$tool" &
  seeded=$!
  for ((shard = 0; shard < shards; shard++)); do
    run "$name-$shard" compute-sanitizer --tool "$tool" --error-exitcode 99 --print-limit 20 \
      "$node" "$app/test/gpu/replay.js" "$home/calls" "$shard/$shards" "${without[@]}" &
    running="$running $!"
  done
  shard=0
  for one in $running; do
    wait "$one" || only_warnings "$out/$name-$shard.log" || { code=1; tail -40 "$out/$name-$shard.log"; }
    shard=$((shard + 1))
  done
  wait "$seeded" || code=1
  grep -hE 'ERROR SUMMARY|RACECHECK SUMMARY' "$out/$name"-*.log | sort | uniq -c | sed "s/^/$tool: /" | tee -a "$summary"
  echo "$tool: $(cat "$out/$name"-*.log | grep -c '^call ') calls made, $(cat "$out/$name"-*.log | grep -c '^FAILED call ') failed" |
    tee -a "$summary"
  return "$code"
}

for set in "$@"; do
  what=${set%%:*}
  argument=""
  [ "$what" = "$set" ] || argument=${set#*:}
  case $what in
    tests)
      node_options=""
      case $argument in *" "*) node_options=${argument#* } ;; esac
      node_tests tests $node_options $(test_files "${argument%% *}")
      coverage tests "$out/tests.log"
      ;;
    ptx) run ptx "$app/build/programs/test-ptx" || tail -20 "$out/ptx.log" ;;
    golden) node_tests golden "$app/test/gpu/model.test.js" "$app/test/gpu/mutations.test.js" ;;
    bench)
      name=bench-$(echo "${argument:-kernels}" | tr -cs 'a-zA-Z0-9._\n' '-' | cut -c1-40)
      argument=${argument:-kernels}
      run "$name" "$node" "$app/lib/cli/main.js" bench $argument
      cat "$out/$name.log"
      ;;
    gpu-bench)
      run gpu-bench "$node" scripts/gpu-bench.cjs --cli lib/cli/main.js $argument
      cp "$app"/.build/bench/*.jsonl "$out"/ 2>/dev/null
      tail -150 "$out/gpu-bench.log"
      ;;
    mla)
      name=mla-$(echo "$argument" | tr -cs 'a-zA-Z0-9._\n' '-' | cut -c1-40)
      run "$name" "$node" "$app/lib/cli/main.js" $argument
      tail -40 "$out/$name.log"
      ;;
    run)
      name=run-$(basename "${argument%% *}" .js)
      run "$name" "$node" $argument
      tail -60 "$out/$name.log"
      ;;
    sanitize)
      IFS=: read -r tools shards <<< "$argument"
      tools=$(echo "${tools:-memcheck}" | tr + ' ')
      record_calls || failed=1
      running=""
      for tool in $tools; do
        sanitize "$tool" "${shards:-1}" &
        running="$running $!"
      done
      for one in $running; do wait "$one" || failed=1; done
      for tool in $tools; do coverage "$tool" "$out/sanitize-$tool"-*.log; done
      ;;
    *) echo "gpu-run: no set $set" | tee -a "$summary"; failed=1 ;;
  esac
done

# What comes back should be few and small files.
for log in "$out"/*.log; do
  [ -e "$log" ] && [ "$(wc -c < "$log")" -gt 15000000 ] && { tail -c 15000000 "$log" > "$log.end"; mv "$log.end" "$log"; }
done
echo "---- summary"
cat "$summary"
exit "$failed"
