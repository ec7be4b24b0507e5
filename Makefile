.PHONY: build test demo lint format clean
build:
	scripts/setup.sh build
	cmake --preset dev
	cmake --build --preset dev
test: build
	scripts/setup.sh test
	ctest --preset dev
lint: build
	scripts/setup.sh lint
	scripts/lint.sh
demo: build
	scripts/demo.sh
clean:
	cmake --build build --target clean
