# Thin on purpose: what happens is in scripts/ and in cargo.

.PHONY: demo test setup lint unit native guests soak

# Everything that Debian 12 lacks. Rust itself (1.88 or later) must be there.
setup:
	scripts/setup

# A contended program under lockprof: table, histograms, and demo-out/flamegraph.svg.
demo: setup
	scripts/demo

# Every tier: style, unit and golden tests, this machine's kernel, the guest kernels.
test: setup lint unit native guests

lint:
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo clippy --test traced --test unwind -- -D warnings
	clang-format --dry-run --Werror bpf/*.c bpf/*.h bpf/include/*.h \
		$(wildcard $(addprefix tests/futexes/,*.c *.h *.cpp *.hpp))
	shellcheck -x scripts/* $(addprefix tests/vm/,binaries boot coverage fetch matrix soak soak-guest spin suite) tests/futexes/build .ci/run

# Without privileges.
unit:
	cargo test

# Root, and a kernel that runs BPF: lockprof's own choice of methods on this machine.
native:
	cargo test --lib -- --ignored
	cargo test --test traced
	cargo test --test unwind

# Root is not needed, QEMU is: 5.10, 6.1, 6.1-rt, 6.12 and 7.x under software emulation.
guests:
	tests/vm/matrix
	tests/vm/coverage --check
	LOCKPROF_VM_BUILT=1 tests/vm/spin 7.x
	LOCKPROF_VM_BUILT=1 tests/vm/soak 6.1 30

# A minute under load with every hook on, on every kernel; `make test` does so on one.
soak:
	for kernel in 5.10 6.1 6.1-rt 6.12 7.x; do tests/vm/soak $$kernel || exit; done
