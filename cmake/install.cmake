# What `cmake --install` leaves beside the op libraries (src/ort): the command line, which looks for them in ../lib, and
# the CMake package `kvshare`:
#   kvshare::kvshare  the attention core and its oracle, one static library that needs threads and nothing else
#   kvshare::graph    Inspect and Rewrite; there where the consumer has protobuf
#   kvshare::host     Verify and Diagnose; there where the consumer has zlib as well
include(CMakePackageConfigHelpers)

# kvshare_installed_library(NAME [COMPONENT c] PARTS...): the objects of PARTS in one archive, exported as kvshare::NAME; with
# a component it is installed only where that one is asked for.
function(kvshare_installed_library name)
  cmake_parse_arguments(ARG "" "COMPONENT" "" ${ARGN})
  set(component)
  if(ARG_COMPONENT)
    set(component COMPONENT ${ARG_COMPONENT} EXCLUDE_FROM_ALL)
  endif()
  set(target kvshare_installed_${name})
  set(objects)
  foreach(part ${ARG_UNPARSED_ARGUMENTS})
    list(APPEND objects $<TARGET_OBJECTS:${part}>)
  endforeach()
  add_library(${target} STATIC ${objects})
  set_target_properties(${target} PROPERTIES LINKER_LANGUAGE CXX EXPORT_NAME ${name}
    ARCHIVE_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/installed")
  target_include_directories(${target} INTERFACE $<INSTALL_INTERFACE:include>)
  target_compile_features(${target} INTERFACE cxx_std_20)
  install(TARGETS ${target} EXPORT kvshare_${name} ARCHIVE DESTINATION lib ${component})
  install(EXPORT kvshare_${name} NAMESPACE kvshare:: FILE kvshare_${name}.cmake DESTINATION ${KVSHARE_PACKAGE_DIR} ${component})
endfunction()

set(KVSHARE_PACKAGE_DIR lib/cmake/kvshare)
kvshare_installed_library(kvshare kvshare_core kvshare_oracle kvshare_attention kvshare_fmt hwy)
set_target_properties(kvshare_installed_kvshare PROPERTIES OUTPUT_NAME kvshare)
target_link_libraries(kvshare_installed_kvshare INTERFACE Threads::Threads)

kvshare_installed_library(graph kvshare_graph kvshare_onnx_proto)
set_target_properties(kvshare_installed_graph PROPERTIES OUTPUT_NAME kvshare_graph)
target_link_libraries(kvshare_installed_graph INTERFACE kvshare_installed_kvshare protobuf::libprotobuf)

kvshare_installed_library(host kvshare_host zip)
set_target_properties(kvshare_installed_host PROPERTIES OUTPUT_NAME kvshare_host)
target_link_libraries(kvshare_installed_host INTERFACE kvshare_installed_graph z ${CMAKE_DL_LIBS})

# The Python extension's: the graph tool with everything below it that the first archive lacks.
kvshare_installed_library(tools COMPONENT python kvshare_graph kvshare_genai kvshare_host kvshare_report kvshare_onnx_proto kvshare_protobuf_lite zip)
set_target_properties(kvshare_installed_tools PROPERTIES OUTPUT_NAME kvshare_tools EXCLUDE_FROM_ALL ON)
target_link_libraries(kvshare_installed_tools INTERFACE kvshare_installed_kvshare z ${CMAKE_DL_LIBS})
install(FILES src/report/progress.h src/report/report.h DESTINATION include/report COMPONENT python EXCLUDE_FROM_ALL)

install(TARGETS kvshare RUNTIME DESTINATION bin)
install(DIRECTORY include/kvshare "${KVSHARE_GENERATED}/kvshare" DESTINATION include)

configure_package_config_file(cmake/kvshareConfig.cmake.in kvshareConfig.cmake INSTALL_DESTINATION ${KVSHARE_PACKAGE_DIR})
write_basic_package_version_file(kvshareConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/kvshareConfig.cmake" "${PROJECT_BINARY_DIR}/kvshareConfigVersion.cmake"
  DESTINATION ${KVSHARE_PACKAGE_DIR})
