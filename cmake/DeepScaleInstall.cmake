# Installs library, headers, CMake package, Python extension and programs, in one of two shapes:
# - `cmake --install build/release --prefix P`: P/lib, P/include, P/lib/cmake/DeepScale, P/bin
# - inside a wheel (scikit-build-core sets SKBUILD): the same under deepspeed/ of the package, programs into the
#   environment's bin; torch is found beside the package, without an absolute path
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

if(SKBUILD)
  set(prefix deepspeed/)
  set(library_folder deepspeed/lib)
  set(program_folder "${SKBUILD_SCRIPTS_DIR}")
  set(extension_folder deepspeed)
else()
  set(prefix "")
  set(library_folder "${CMAKE_INSTALL_LIBDIR}")
  set(program_folder "${CMAKE_INSTALL_BINDIR}")
endif()
set(package_folder "${library_folder}/cmake/DeepScale")

if(TARGET deepspeed_launcher)
  install(TARGETS deepspeed_launcher RUNTIME DESTINATION "${program_folder}")
  # The customary other names. Copies, because wheels cannot hold links.
  foreach(name deepscale deepspeed.pt ds)
    install(PROGRAMS $<TARGET_FILE:deepspeed_launcher> DESTINATION "${program_folder}" RENAME ${name}${CMAKE_EXECUTABLE_SUFFIX})
  endforeach()
endif()
if(TARGET ds_report)
  install(TARGETS ds_report RUNTIME DESTINATION "${program_folder}")
  install(PROGRAMS $<TARGET_FILE:ds_report> DESTINATION "${program_folder}" RENAME dsr${CMAKE_EXECUTABLE_SUFFIX})
endif()

if(TARGET ds_elastic)
  install(TARGETS ds_elastic ds_ssh RUNTIME DESTINATION "${program_folder}")
endif()

if(TARGET deepscale)
  set_target_properties(deepscale PROPERTIES EXPORT_NAME DeepScale)
  if(SKBUILD)
    set_target_properties(deepscale PROPERTIES INSTALL_RPATH "$ORIGIN;$ORIGIN/../../torch/lib")
  else()
    set_target_properties(deepscale PROPERTIES INSTALL_RPATH "$ORIGIN;${TorchWheel_DIR_ROOT}/lib")
  endif()
  install(TARGETS deepscale EXPORT DeepScaleTargets LIBRARY DESTINATION "${library_folder}" ARCHIVE DESTINATION "${library_folder}"
    INCLUDES DESTINATION "${prefix}include")
  install(EXPORT DeepScaleTargets NAMESPACE DeepScale:: DESTINATION "${package_folder}")
  install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/" DESTINATION "${prefix}include" FILES_MATCHING PATTERN "*.h")
  configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/DeepScaleConfig.cmake.in"
    "${PROJECT_BINARY_DIR}/DeepScaleConfig.cmake" INSTALL_DESTINATION "${package_folder}")
  write_basic_package_version_file("${PROJECT_BINARY_DIR}/DeepScaleConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
  install(FILES "${PROJECT_BINARY_DIR}/DeepScaleConfig.cmake" "${PROJECT_BINARY_DIR}/DeepScaleConfigVersion.cmake"
    "${PROJECT_SOURCE_DIR}/cmake/FindTorchWheel.cmake" DESTINATION "${package_folder}")
endif()

if(TARGET deepscale_python AND SKBUILD)
  install(TARGETS deepscale_python LIBRARY DESTINATION "${extension_folder}")
endif()
