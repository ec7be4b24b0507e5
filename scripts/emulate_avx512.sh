#!/usr/bin/env bash
# emulate_avx512.sh: the attention core's tests on AVX-512 with bf16, for a machine that lacks it. Bochs emulates a PC and a
# Sapphire Rapids; a Linux in it runs the test programs of build/bin, and a table says on which SIMD targets.
set -euo pipefail
cd "$(dirname "$0")/.."
BOCHS=$(realpath "${KVSHARE_DEPS:-build/deps}/bochs")
WORK=$PWD/build/avx512
LIBRARIES=$BOCHS/usr/lib/x86_64-linux-gnu
LOADER=("$LIBRARIES/ld-linux-x86-64.so.2" --library-path "$LIBRARIES")  # Debian trixie's programs need its libc
TARGETS=(AVX3_ZEN4 AVX3)  # of src/attention/CMakeLists.txt, those with AVX-512
# PROGRAM:FILTER. An emulated second is minutes long: left out is what has hundreds of calls of wide heads.
# Of AVX3_ZEN4 no attention of bf16 runs: Bochs 3.0 takes wrong elements in VCVTNE2PS2BF16.
SLOW='*EveryHeadSize*:*WideBlocks*:*FewKeys*:*RowsOfAnySize*:*DotProducts*:*RandomSpecs*:*FarApart*'
TESTS=(
  "attention:Simd/*/AVX3:Simd/*IsTheOne*/AVX3_ZEN4:Simd/*F8*/AVX3_ZEN4:Simd/*Quantized*/AVX3_ZEN4:Simd/*Masks*/AVX3_ZEN4:-$SLOW"
  "append:Simd/*/AVX3:Simd/*/AVX3_ZEN4"
)
LIMIT=${KVSHARE_EMULATOR_SECONDS:-3600}

# linux_root FOLDER: what the emulated Linux starts from: the test programs, their libraries and an init that runs them.
linux_root() {
  local root=$1 entry program library
  rm -rf "$root"
  mkdir -p "$root"/{bin,proc}
  cp "$BOCHS/usr/bin/busybox" "$root/bin"
  {
    echo '#!/bin/busybox sh'
    echo '/bin/busybox mount -t proc proc /proc'
    echo 'export GTEST_COLOR=no'
    echo "/bin/busybox grep -m 1 'model name' /proc/cpuinfo"
    for entry in "${TESTS[@]}"; do
      program=attention_${entry%%:*}_test
      echo "/bin/$program '--gtest_filter=${entry#*:}'; echo \"$program ends with \$?\""
    done
    echo '/bin/busybox sleep 2; /bin/busybox reboot -f'  # the serial line has a buffer
  } >"$root/init"
  chmod +x "$root/init"
  for entry in "${TESTS[@]}"; do
    program=build/bin/attention_${entry%%:*}_test
    cp "$program" "$root/bin"
    for library in $(ldd "$program" | grep -o '/[^ ]*'); do
      mkdir -p "$root$(dirname "$library")"
      cp -L "$library" "$root$library"
    done
  done
}

# boot_disc FILE: an ISO image that starts the kernel.
boot_disc() {
  local disc=$WORK/disc/isolinux
  rm -rf "$WORK/disc"
  mkdir -p "$disc"
  linux_root "$WORK/root"
  (cd "$WORK/root" && find . | "${LOADER[@]}" "$BOCHS/usr/bin/cpio" --quiet -o -H newc -R 0:0 | gzip -1) >"$disc/initrd.gz"
  cp "$BOCHS"/boot/vmlinuz-* "$disc/vmlinuz"
  cp "$BOCHS"/usr/lib/ISOLINUX/isolinux.bin "$BOCHS"/usr/lib/syslinux/modules/bios/ldlinux.c32 "$disc"
  # noxsaves: Bochs 3.0 and Linux 6.12 do not agree on the size of the compacted registers. reboot=t ends the emulator.
  printf 'default tests\nlabel tests\n kernel vmlinuz\n append initrd=initrd.gz console=ttyS0 quiet %s\n' \
    'reboot=t nokaslr mitigations=off noxsaves tsc=reliable panic=-1 random.trust_cpu=on' >"$disc/isolinux.cfg"
  "${LOADER[@]}" "$BOCHS/usr/bin/genisoimage" -quiet -o "$1" -b isolinux/isolinux.bin -c isolinux/boot.cat -no-emul-boot \
    -boot-load-size 4 -boot-info-table -R "$WORK/disc"
}

# emulate DISC SERIAL: what the machine writes to its serial line.
emulate() {
  # pci: with it the BIOS enters system management mode, and Bochs 3.0 stops in it: "SMM restore: CR4 consistency check".
  cat >"$WORK/bochsrc" <<CONFIG
cpu: model=sapphire_rapids, count=1, ips=100000000, reset_on_triple_fault=0
memory: guest=512, host=512
romimage: file=$BOCHS/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=$BOCHS/usr/share/bochs/VGABIOS-lgpl-latest
display_library: rfb, options="timeout=0"
pci: enabled=0
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path=$1, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$2
log: $WORK/bochs.log
panic: action=fatal
error: action=ignore
info: action=ignore
sound: driver=dummy
CONFIG
  rm -f "$2"
  # It ends by a triple fault, which is a panic: the serial line says whether the tests had run.
  LTDL_LIBRARY_PATH=$LIBRARIES/bochs/plugins BXSHARE=$BOCHS/usr/share/bochs \
    timeout "$LIMIT" "${LOADER[@]}" "$BOCHS/usr/bin/bochs-bin" -q -f "$WORK/bochsrc" >"$WORK/bochs.out" 2>&1 </dev/null || true
}

mkdir -p "$WORK"
boot_disc "$WORK/disc.iso"
begin=$SECONDS
emulate "$WORK/disc.iso" "$WORK/serial.txt"
tr -d '\r' <"$WORK/serial.txt" | grep -E 'model name|^\[ +(OK|FAILED|SKIPPED) +\] \S+ \(|ends with|Failure|: error|panic' || true
echo
echo "| SIMD target, emulated | passed | failed | skipped |"
echo "|---|---|---|---|"
count() { tr -d '\r' <"$WORK/serial.txt" | grep -cE "^\[ +$2 +\] \S+/$1 \(" || true; }
failed=0
for target in "${TARGETS[@]}"; do
  echo "| $target | $(count "$target" OK) | $(count "$target" FAILED) | $(count "$target" SKIPPED) |"
  [[ $(count "$target" OK) -gt 0 ]] || failed=1
done
echo "emulated in $((SECONDS - begin)) s; left out: SSE2 and AVX2, which \`make test\` runs"
for entry in "${TESTS[@]}"; do
  tr -d '\r' <"$WORK/serial.txt" | grep -qx "attention_${entry%%:*}_test ends with 0" ||
    { echo "emulate_avx512: attention_${entry%%:*}_test failed or did not end; $WORK/serial.txt" >&2; failed=1; }
done
exit $failed
