# kvshare_library(NAME SOURCES... [DEPENDS targets...]): a static library with the project's warnings and include paths.
function(kvshare_set_warnings target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Wold-style-cast -Woverloaded-virtual
                                           $<$<BOOL:${KVSHARE_WARNINGS_AS_ERRORS}>:-Werror>)
endfunction()

function(kvshare_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_include_directories(${name} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:include>
                                     PRIVATE ${PROJECT_SOURCE_DIR}/src)
  target_link_libraries(${name} PUBLIC ${ARG_DEPENDS})
  kvshare_set_warnings(${name})
endfunction()

# kvshare_test(path DEPENDS targets...): tests/<path>_test.cc, mirroring src/<path>.cc; each gtest case is a ctest case. In an
# emulator each program is one: to start it takes longer than most cases do.
function(kvshare_test path)
  cmake_parse_arguments(ARG "" "" "DEPENDS;LABELS" ${ARGN})
  string(REPLACE "/" "_" name "${path}_test")
  add_executable(${name} ${PROJECT_SOURCE_DIR}/tests/${path}_test.cc)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PRIVATE ${ARG_DEPENDS} GTest::gtest GTest::gmock GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE KVSHARE_TEST_DATA="${PROJECT_SOURCE_DIR}/tests/data")
  kvshare_set_warnings(${name})
  if(CMAKE_CROSSCOMPILING)
    add_test(NAME ${path} COMMAND ${name})
    set_tests_properties(${path} PROPERTIES LABELS "${ARG_LABELS}")
  else()
    gtest_discover_tests(${name} NO_PRETTY_VALUES TEST_PREFIX "${path}." DISCOVERY_TIMEOUT 60 PROPERTIES LABELS "${ARG_LABELS}")
  endif()
  if("threads" IN_LIST ARG_LABELS)  # what the preset tsan builds
    if(NOT TARGET threads_tests)
      add_custom_target(threads_tests)
    endif()
    add_dependencies(threads_tests ${name})
  endif()
endfunction()
