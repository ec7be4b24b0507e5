# KVSHARE_PYTHON as tests and examples run it: with what sanitized libraries need.
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
