# KVSHARE_PYTHON as tests and examples run it, with what sanitized libraries need or in the emulator. KVSHARE_TOOL, the command
# line as they start it, and for tests of what the tool says and writes: KVSHARE_TOOL_PYTHON, which starts it and runs what it
# wrote, with KVSHARE_TOOL_LIBRARY, the op library for that Python, and KVSHARE_TOOL_ORT, the tool's own ONNX Runtime.
set(KVSHARE_TOOL $<TARGET_FILE:kvshare>)
set(KVSHARE_TOOL_LIBRARY $<TARGET_FILE:kvshare_ort>)
set(KVSHARE_TOOL_ORT "")  # as the tool finds it
set(KVSHARE_HOST_PYTHON "${KVSHARE_PYTHON}")
set(KVSHARE_PYTHON_PACKAGES "${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages")
set(KVSHARE_CASES "")  # what pytest chooses of the exported cases: all
set(KVSHARE_TOOL_CASES "")  # the same of tests in which the tool runs models
if(CMAKE_CROSSCOMPILING)
  list(JOIN CMAKE_CROSSCOMPILING_EMULATOR "' '" emulator)
  # One folder below the build's, as the tool itself is: tests look for the libraries from there.
  file(CONFIGURE OUTPUT "${PROJECT_BINARY_DIR}/emulated/kvshare" @ONLY CONTENT
       "#!/bin/sh\nexec '@emulator@' '@CMAKE_RUNTIME_OUTPUT_DIRECTORY@/kvshare' \"$@\"\n")
  set(KVSHARE_TOOL "${PROJECT_BINARY_DIR}/emulated/kvshare")
  # sys.executable, which tests start again, is to be this script too.
  set(KVSHARE_PYTHON_PACKAGES "${KVSHARE_DEPS}/arm/python")
  set(packages "${PROJECT_BINARY_DIR}/python-path:${KVSHARE_PYTHON_PACKAGES}")
  file(WRITE "${PROJECT_BINARY_DIR}/python-path/sitecustomize.py" "import sys\nsys.executable = '${PROJECT_BINARY_DIR}/python'\n")
  file(CONFIGURE OUTPUT "${PROJECT_BINARY_DIR}/python" @ONLY CONTENT
       "#!/bin/sh\nexport PYTHONPATH=\"@packages@:$PYTHONPATH\"\nexec '@emulator@' '@CMAKE_SYSROOT@/usr/bin/python3.11' \"$@\"\n")
  foreach(script emulated/kvshare python)
    file(CHMOD "${PROJECT_BINARY_DIR}/${script}" PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
  endforeach()
  set(KVSHARE_PYTHON "${PROJECT_BINARY_DIR}/python")
  # The tool alone is emulated: this machine's Python checks what it wrote, with the library that `make build` made.
  set(KVSHARE_TOOL_LIBRARY "${PROJECT_SOURCE_DIR}/build/lib/libkvshare_ort.so")
  set(KVSHARE_TOOL_ORT "KVSHARE_ORT=${KVSHARE_DEPS}/arm/python")
  # An emulator has time for one of each form: f32 and f16, ragged, com.microsoft's and ai.onnx's ops. `make arm-cases` has all that take minutes; other
  # releases of ONNX Runtime are not unpacked for aarch64.
  set(KVSHARE_CASES -k "golden_logits and not e2b35 and (head_b2_ragged or head_shared_gqa or mixed_bias_asis or torch_gemma4)")
  set(KVSHARE_EVERY_CASE -k "not other_releases and not e2b_heads")
  set(KVSHARE_TOOL_CASES -k "not e2b_heads")
endif()
if(KVSHARE_SANITIZE MATCHES "address")
  # Python is not instrumented: the runtime has to be there before the libraries that it loads, and so has the C++ runtime
  # whose exceptions it watches. Python leaks by design.
  set(preload "")
  foreach(library libasan.so libstdc++.so)
    execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-file-name=${library} OUTPUT_VARIABLE path OUTPUT_STRIP_TRAILING_WHITESPACE)
    list(APPEND preload "${path}")
  endforeach()
  list(JOIN preload ":" preload)
  file(WRITE "${PROJECT_BINARY_DIR}/python" "#!/bin/sh\nexport LD_PRELOAD=${preload} ASAN_OPTIONS=\"$ASAN_OPTIONS:detect_leaks=0\"\nexec '${KVSHARE_PYTHON}' \"$@\"\n")
  file(CHMOD "${PROJECT_BINARY_DIR}/python" PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
  set(KVSHARE_PYTHON "${PROJECT_BINARY_DIR}/python")
endif()
set(KVSHARE_TOOL_PYTHON "${KVSHARE_PYTHON}")
if(CMAKE_CROSSCOMPILING)
  set(KVSHARE_TOOL_PYTHON "${KVSHARE_HOST_PYTHON}")
endif()
