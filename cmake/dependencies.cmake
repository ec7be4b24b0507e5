# Everything kvshare stands on. scripts/setup.sh brings what is missing.
foreach(file highway/CMakeLists.txt ort/include/onnxruntime_ep_c_api.h protobuf/cmake/libprotobuf-lite.cmake
        libzip/CMakeLists.txt)
  if(NOT EXISTS "${KVSHARE_DEPS}/${file}")
    message(FATAL_ERROR "${KVSHARE_DEPS} has no ${file}; run scripts/setup.sh build")
  endif()
endforeach()

find_package(fmt REQUIRED)
# Debian's compiled one is a shared library, and not every machine that loads the op library has it.
add_library(kvshare_fmt STATIC cmake/fmt.cc)
target_include_directories(kvshare_fmt SYSTEM PUBLIC $<TARGET_PROPERTY:fmt::fmt-header-only,INTERFACE_INCLUDE_DIRECTORIES>)
# A namespace of its own: who links the installed archive may link another {fmt}.
target_compile_definitions(kvshare_fmt PUBLIC "FMT_BEGIN_NAMESPACE=namespace fmt { inline namespace kvshare {"
                                              "FMT_END_NAMESPACE=}}")

find_package(Threads REQUIRED)
find_package(Protobuf REQUIRED)
find_package(CLI11 REQUIRED)
find_package(nlohmann_json REQUIRED)
# libzip from source, without the codecs that no .npz has: not every machine that runs the command line has the shared one.
foreach(feature BZIP2 LZMA ZSTD OPENSSL GNUTLS MBEDTLS COMMONCRYPTO)
  set(ENABLE_${feature} OFF CACHE BOOL "" FORCE)
endforeach()
foreach(part TOOLS REGRESS EXAMPLES DOC SHARED_LIBS)
  set(BUILD_${part} OFF CACHE BOOL "" FORCE)
endforeach()
set(LIBZIP_DO_INSTALL OFF CACHE BOOL "" FORCE)
set(CMAKE_POLICY_DEFAULT_CMP0063 NEW)
set(CMAKE_MESSAGE_LOG_LEVEL ERROR)  # it warns of codecs and ciphers that it does without
add_subdirectory("${KVSHARE_DEPS}/libzip" "${PROJECT_BINARY_DIR}/libzip" EXCLUDE_FROM_ALL SYSTEM)
unset(CMAKE_MESSAGE_LOG_LEVEL)
unset(CMAKE_POLICY_DEFAULT_CMP0063)
target_compile_options(zip PRIVATE -w)

# Highway >= 1.2: Debian 12's 1.0.3 has no Zen4 target and no bf16 dot product.
set(HWY_ENABLE_TESTS OFF CACHE BOOL "" FORCE)
set(HWY_ENABLE_EXAMPLES OFF CACHE BOOL "" FORCE)
set(HWY_ENABLE_CONTRIB OFF CACHE BOOL "" FORCE)
set(HWY_ENABLE_INSTALL OFF CACHE BOOL "" FORCE)
set(HWY_FORCE_STATIC_LIBS ON CACHE BOOL "" FORCE)
add_subdirectory("${KVSHARE_DEPS}/highway" "${PROJECT_BINARY_DIR}/highway" EXCLUDE_FROM_ALL SYSTEM)

# ONNX Runtime: headers only, nothing links it.
add_library(kvshare_ort_headers INTERFACE)
target_include_directories(kvshare_ort_headers SYSTEM INTERFACE "${KVSHARE_DEPS}/ort/include")

# protobuf's lite runtime from Debian 12's source: its compiled archive is not position-independent, and not every machine
# that loads the op library has the shared one. Hidden, so that another protobuf of the process never meets this one.
set(KVSHARE_PROTOBUF_SRC "${KVSHARE_DEPS}/protobuf/src")
file(STRINGS "${KVSHARE_DEPS}/protobuf/cmake/libprotobuf-lite.cmake" KVSHARE_PROTOBUF_LITE REGEX "/src/google/protobuf/.*\\.cc$")
list(TRANSFORM KVSHARE_PROTOBUF_LITE REPLACE ".*/src/" "${KVSHARE_PROTOBUF_SRC}/")
add_library(kvshare_protobuf_lite STATIC ${KVSHARE_PROTOBUF_LITE})
target_include_directories(kvshare_protobuf_lite SYSTEM PUBLIC "${KVSHARE_PROTOBUF_SRC}")
target_compile_definitions(kvshare_protobuf_lite PRIVATE HAVE_PTHREAD)
target_compile_options(kvshare_protobuf_lite PRIVATE -w)
target_link_libraries(kvshare_protobuf_lite PUBLIC Threads::Threads)

# ONNX's schema, from the onnx wheel in .venv.
find_program(KVSHARE_PYTHON python PATHS "${PROJECT_SOURCE_DIR}/.venv/bin" NO_DEFAULT_PATH REQUIRED)
file(GLOB KVSHARE_ONNX_PROTO "${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages/onnx/onnx-ml.proto")
if(NOT KVSHARE_ONNX_PROTO)
  message(FATAL_ERROR "onnx-ml.proto is not in .venv; run scripts/setup.sh build")
endif()
set(KVSHARE_PROTO_DIR "${PROJECT_BINARY_DIR}/proto")
file(MAKE_DIRECTORY "${KVSHARE_PROTO_DIR}/onnx")
add_custom_command(
  OUTPUT "${KVSHARE_PROTO_DIR}/onnx/onnx-ml.pb.cc" "${KVSHARE_PROTO_DIR}/onnx/onnx-ml.pb.h"
  COMMAND ${CMAKE_COMMAND} -E copy "${KVSHARE_ONNX_PROTO}" "${KVSHARE_PROTO_DIR}/onnx/onnx-ml.proto"
  COMMAND protobuf::protoc --cpp_out "${KVSHARE_PROTO_DIR}" -I "${KVSHARE_PROTO_DIR}" onnx/onnx-ml.proto
  DEPENDS "${KVSHARE_ONNX_PROTO}")
add_library(kvshare_onnx_proto STATIC "${KVSHARE_PROTO_DIR}/onnx/onnx-ml.pb.cc")
target_include_directories(kvshare_onnx_proto SYSTEM PUBLIC "${KVSHARE_PROTO_DIR}")
target_link_libraries(kvshare_onnx_proto PUBLIC kvshare_protobuf_lite)
if(KVSHARE_SANITIZE)  # long to compile, and not ours
  foreach(target kvshare_onnx_proto kvshare_protobuf_lite)
    target_compile_options(${target} PRIVATE -fno-sanitize=all)
  endforeach()
endif()

if(KVSHARE_BUILD_TESTS)
  find_package(GTest REQUIRED)
  include(GoogleTest)
endif()
if(KVSHARE_BUILD_BENCH)
  find_package(benchmark REQUIRED)
endif()
