# Everything kvshare stands on. scripts/setup.sh brings what is missing.
if(NOT EXISTS "${KVSHARE_DEPS}/highway/CMakeLists.txt" OR NOT EXISTS "${KVSHARE_DEPS}/ort/include/onnxruntime_c_api.h")
  message(FATAL_ERROR "Highway's source or ONNX Runtime's headers are not in ${KVSHARE_DEPS}; run scripts/setup.sh build")
endif()

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
# Debian's libzip package config also wants its command-line tools, which nothing here uses.
find_library(KVSHARE_LIBZIP zip REQUIRED)
find_path(KVSHARE_LIBZIP_INCLUDE zip.h REQUIRED)
add_library(kvshare_libzip INTERFACE)
target_include_directories(kvshare_libzip SYSTEM INTERFACE "${KVSHARE_LIBZIP_INCLUDE}")
target_link_libraries(kvshare_libzip INTERFACE "${KVSHARE_LIBZIP}")

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
target_include_directories(kvshare_onnx_proto SYSTEM PUBLIC "${KVSHARE_PROTO_DIR}" ${Protobuf_INCLUDE_DIRS})
target_link_libraries(kvshare_onnx_proto PUBLIC protobuf::libprotobuf)
if(KVSHARE_SANITIZE)  # generated code: long to compile, and not ours
  target_compile_options(kvshare_onnx_proto PRIVATE -fno-sanitize=all)
endif()

if(KVSHARE_BUILD_TESTS)
  find_package(GTest REQUIRED)
  include(GoogleTest)
endif()
if(KVSHARE_BUILD_BENCH)
  find_package(benchmark REQUIRED)
endif()
