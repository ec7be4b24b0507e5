# The whole life of a checkout. A fresh Debian 12 with git, make, ca-certificates and python3 is enough.
.PHONY: corpus gpu-check arm arm-cases arm-clang arm-wheel avx512 bench-model wheel wheel-test genai chat build test demo bench matrix mutate realmodel lint format docs compatibility install sanitize coverage fuzz ci-full clean
FUZZ_SECONDS ?= 60
PREFIX ?= /usr/local

build:    ## build/bin/kvshare, build/lib/libkvshare_ort.so, build/lib/libkvshare_dropin.so
	scripts/setup.sh build
	cmake --preset dev
	cmake --build --preset dev --target kvshare kvshare_ort kvshare_dropin

test:     ## all tests; no GPU, no torch
	scripts/setup.sh build test
	cmake --workflow --preset dev

demo: build  ## a real exported graph, rewritten, in stock ONNX Runtime
	scripts/demo.sh

bench: build  ## kvshare beside its peers and the machine's roof; QUICK=1: under 3 minutes, else about 15
	scripts/setup.sh bench
	cmake --build --preset dev --target kvshare_roof decode_bench decode_side
	.venv/bin/python -m bench.run $(if $(QUICK),--quick)

bench-model: build  ## a whole model of E2B's shape, ONNX Runtime alone and with kvshare: tokens/s, first token, memory; 20 minutes, 6 GB of memory; QUICK=1: 2 minutes
	.venv/bin/python -m bench.model $(if $(QUICK),--plan quick)

matrix: build  ## every exported case and the op tests on ONNX Runtime 1.19 to 1.32, both modes
	scripts/setup.sh matrix
	.venv/bin/python scripts/matrix.py

arm: build  ## aarch64 Linux: cross-built, its tests under qemu, the op library in ONNX Runtime's wheel for it
	scripts/setup.sh arm
	cmake --workflow --preset arm

arm-cases: arm  ## every exported case in ONNX Runtime's aarch64 wheel, and what else of the graph tool takes minutes under qemu
	ctest --preset arm-cases

arm-wheel: ## dist-arm/kvshare-*.whl for aarch64 and Python 3.11; in ONNX Runtime's wheel for it, under qemu
	scripts/setup.sh build arm wheel
	cmake --preset arm
	scripts/wheel.sh arm
	scripts/wheel_test.sh arm

arm-clang: ## the attention core by clang 19, which knows bf16's dot products
	scripts/setup.sh build arm arm-clang
	cmake --workflow --preset arm-clang

avx512:   ## the attention core's tests on AVX-512, which Bochs emulates: for machines that lack it; a table of what ran
	scripts/setup.sh build avx512
	cmake --preset dev
	cmake --build --preset dev --target attention_attention_test attention_append_test
	scripts/emulate_avx512.sh

mutate:   ## does a test fail for each seeded fault? NAMES="..." runs some
	scripts/setup.sh build test
	.venv/bin/python tests/mutation/mutate.py $(NAMES)

realmodel: build  ## a trained decoder, 200 tokens after 700, against PyTorch; NAMES=gemma3 (its terms are yours to keep)
	scripts/setup.sh realmodel
	HF_HUB_OFFLINE=1 build/realmodel-venv/bin/python tests/realmodel/compare.py build/realmodel $(NAMES)

corpus: build  ## models of others, by mobius and ONNX's own tests: no crash, no other answer once rewritten
	scripts/setup.sh realmodel
	HF_HUB_OFFLINE=1 build/realmodel-venv/bin/python tests/corpus/corpus.py build $(PARTS)

gpu-check: ## what only a card can show of the CUDA kernels; needs nvcc and a card, and no package: scripts/gpu_check.sh
	scripts/gpu_check.sh

lint: build  ## clang-format 19 and clang-tidy 23
	scripts/setup.sh lint
	scripts/lint.sh

format:   ## rewrite the sources with clang-format 19
	scripts/setup.sh lint
	scripts/lint.sh --fix

wheel: build  ## dist/kvshare-*.whl for each Python at hand, with everything inside that a machine may lack
	scripts/setup.sh wheel
	scripts/wheel.sh

wheel-test: wheel  ## the wheel in fresh environments, beside several releases of onnxruntime
	scripts/wheel_test.sh

genai: build  ## onnxruntime-genai 0.18 on the execution provider: logits of each step, and where its attention ran
	scripts/setup.sh genai
	build/genai-venv/bin/python -m pytest -q -p no:cacheprovider tests/genai

chat: build  ## text of SmolLM2-135M as it is generated, by onnxruntime-genai on the execution provider; fetches PyTorch and 93 MB
	scripts/setup.sh realmodel
	HF_HUB_OFFLINE=1 build/realmodel-venv/bin/python tests/realmodel/models.py build/realmodel smollm2
	HF_HUB_OFFLINE=1 build/realmodel-venv/bin/python tests/realmodel/export.py build/realmodel smollm2 genai
	build/realmodel-venv/bin/python examples/genai_chat.py build/realmodel/smollm2/genai --library build/lib/libkvshare_ort.so $(ARGS)

install: build  ## under PREFIX, with the CMake package
	cmake --build --preset dev --target kvshare_installed_kvshare kvshare_installed_graph kvshare_installed_host
	cmake --install build --prefix "$(PREFIX)"

sanitize: ## all tests with AddressSanitizer and UBSan, those that run several threads with ThreadSanitizer
	scripts/setup.sh build test
	cmake --workflow --preset asan
	cmake --workflow --preset tsan

coverage: ## does a test raise each message of docs/errors.md?
	scripts/setup.sh build test
	find build/coverage -name '*.gcda' -delete 2>/dev/null || true
	cmake --workflow --preset coverage
	python3 tests/docs/raised.py build/coverage

fuzz:     ## libFuzzer, FUZZ_SECONDS=60 for each target, side by side
	scripts/setup.sh build fuzz
	cmake --preset fuzz
	cmake --build --preset fuzz
	scripts/fuzz.sh $(FUZZ_SECONDS)

ci-full:  ## .ci/run, and what takes too long for it
	.ci/run
	KVSHARE_TEST_ROUNDS=10 KVSHARE_TEST_CYCLES=10000 ctest --preset dev -R '^(attention|oracle)/|^ort.(sessions|property)'
	ctest --preset dev -C full -R '^ort\.cuda'
	$(MAKE) wheel-test
	$(MAKE) arm-cases
	$(MAKE) arm-wheel
	$(MAKE) arm-clang
	$(MAKE) avx512
	$(MAKE) matrix
	$(MAKE) mutate
	$(MAKE) genai
	$(MAKE) realmodel
	$(MAKE) corpus
	$(MAKE) coverage
	$(MAKE) sanitize
	$(MAKE) fuzz FUZZ_SECONDS=1800

docs:     ## docs/errors.md from the source
	python3 scripts/errors_doc.py

compatibility: build  ## docs/compatibility.md from calls of ONNX Runtime's kernels and kvshare's
	scripts/setup.sh test
	KVSHARE_ORT_LIB=build/lib/libkvshare_ort.so KVSHARE_DROPIN_LIB=build/lib/libkvshare_dropin.so \
	KVSHARE_TEST_DATA=tests/data KVSHARE_ORT_RELEASES=build/deps/ort-releases .venv/bin/python tests/ort/compatibility.py

clean:    ## what was compiled; downloads stay
	[ ! -e build/CMakeCache.txt ] || cmake --build build --target clean
