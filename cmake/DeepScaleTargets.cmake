# Helpers every folder's CMakeLists.txt uses, so that language level, warnings and sanitizers are set in one place.
#   deepscale_library(NAME SOURCES ... DEPENDS ...)   static, position independent; DEPENDS become PUBLIC links
#   deepscale_standalone(TARGET)                      a program for machines without a compiler
#   deepscale_test(NAME [ALONE] SOURCES ... DEPENDS ...)   one GoogleTest program, registered with ctest; ALONE: beside no other test

function(deepscale_compile_options target)
  target_compile_features(${target} PUBLIC cxx_std_20)
  if(MSVC)
    # Sources are UTF-8; headers of torch need the standard preprocessor and many sections per object.
    target_compile_options(${target} PRIVATE /W3 /utf-8 /EHsc /bigobj /permissive- /Zc:__cplusplus /Zc:preprocessor)
    target_compile_definitions(${target} PRIVATE
      NOMINMAX WIN32_LEAN_AND_MEAN _WIN32_WINNT=0x0A00 _CRT_SECURE_NO_WARNINGS _CRT_NONSTDC_NO_WARNINGS)
    return()
  endif()
  target_compile_options(${target} PRIVATE -Wall -Wextra -Werror)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    target_compile_options(${target} PRIVATE -Wno-restrict)  # false alarm on "text" + std::string (GCC bug 105651)
  endif()
  if(CMAKE_UNITY_BUILD AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(${target} PRIVATE -Wno-subobject-linkage)  # takes a source that another one includes for a header
  endif()
  # With --gc-sections at the link, what nobody calls does not reach a library or program.
  target_compile_options(${target} PRIVATE $<$<AND:$<CONFIG:Release>,$<CXX_COMPILER_ID:GNU,Clang>>:-ffunction-sections>
    $<$<AND:$<CONFIG:Release>,$<CXX_COMPILER_ID:GNU,Clang>>:-fdata-sections>)
  if(DEEPSCALE_SANITIZER AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(${target} PRIVATE -Wno-maybe-uninitialized)  # false alarms in instrumented standard headers
  endif()
  if(DEEPSCALE_SANITIZER STREQUAL "address")
    target_compile_options(${target} PRIVATE -fsanitize=address,undefined -fno-sanitize=vptr -fno-omit-frame-pointer -g1)
    target_link_options(${target} PUBLIC -fsanitize=address,undefined)
    if(DEEPSCALE_BUILD_FUZZERS)  # a finding ends the program; and the fuzzer sees which branches an input takes
      target_compile_options(${target} PRIVATE -fsanitize=fuzzer-no-link,float-cast-overflow -fno-sanitize-recover=all)
    endif()
  elseif(DEEPSCALE_SANITIZER STREQUAL "thread")
    target_compile_options(${target} PRIVATE -fsanitize=thread -g1)
    target_link_options(${target} PUBLIC -fsanitize=thread)
  endif()
endfunction()

# A program that starts wherever the wheel is installed: the compiler's own libraries inside, and small.
function(deepscale_standalone target)
  if(NOT MSVC)  # whose runtime library comes with Python
    # Not libgcc: a static one would need the C library of the system that builds (_dl_find_object of glibc 2.35).
    target_link_libraries(${target} PRIVATE -static-libstdc++)
    target_link_options(${target} PRIVATE $<$<CONFIG:Release>:-s> $<$<CONFIG:Release>:-Wl,--gc-sections>)
  endif()
endfunction()

function(deepscale_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  deepscale_compile_options(${name})
  target_include_directories(${name} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/src> $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>)
  target_link_libraries(${name} PUBLIC ${ARG_DEPENDS})
endfunction()

function(deepscale_test name)
  if(NOT DEEPSCALE_BUILD_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "ALONE" "TIMEOUT" "SOURCES;DEPENDS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  if(CMAKE_CROSSCOMPILING)
    set(ARG_TIMEOUT 180)  # the slowest needs 30 s; the emulator itself hangs now and then, and what it stopped is tried again
  endif()
  add_executable(${name} ${ARG_SOURCES})
  set_target_properties(${name} PROPERTIES UNITY_BUILD OFF)  # tests give short names to what only they use
  deepscale_compile_options(${name})
  if(CMAKE_BUILD_TYPE STREQUAL "Release" AND NOT MSVC)
    target_compile_options(${name} PRIVATE -O1)  # a third less time for half of the build; what is tested keeps its own level
  endif()
  target_link_libraries(${name} PRIVATE ${ARG_DEPENDS} GTest::gtest GTest::gtest_main Threads::Threads)
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} RUN_SERIAL ${ARG_ALONE})
  if(DEEPSCALE_SANITIZER STREQUAL "thread")
    set_tests_properties(${name} PROPERTIES
      ENVIRONMENT "TSAN_OPTIONS=suppressions=${PROJECT_SOURCE_DIR}/cmake/tsan_suppressions.txt")
  endif()
endfunction()
