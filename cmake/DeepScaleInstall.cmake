# Installs library, headers, CMake package, Python extension and programs, in one of two shapes:
# - `cmake --install build/release --prefix P`: P/lib, P/include, P/lib/cmake/DeepScale, P/bin
# - inside a wheel (scikit-build-core sets SKBUILD): the same under deepspeed/ of the package, programs into the
#   environment's bin; torch is found beside the package, without an absolute path. What is bound to a torch version,
#   libdeepscale and the Python extension, lies in deepspeed/_torch/<minor version of torch>/.
# A wheel for several torch versions (scripts/build_wheel.sh) is made from several builds: each with
# DEEPSCALE_WHEEL_LAYOUT=ON installs its component "torch" into one folder, and the last, without torch, takes that
# folder as DEEPSCALE_TORCH_PARTS and adds everything else.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

if(SKBUILD OR DEEPSCALE_WHEEL_LAYOUT)
  set(prefix deepspeed/)
  set(shared_folder deepspeed/lib)
  set(program_folder "${SKBUILD_SCRIPTS_DIR}")
  set(torch_folder "deepspeed/_torch/${TorchWheel_MINOR}")
  set(library_folder "${torch_folder}")
  set(library_rpath "$ORIGIN;$ORIGIN/../../../torch/lib")
else()
  set(prefix "")
  set(shared_folder "${CMAKE_INSTALL_LIBDIR}")
  set(program_folder "${CMAKE_INSTALL_BINDIR}")
  set(library_folder "${shared_folder}")
  set(library_rpath "$ORIGIN;${TorchWheel_DIR_ROOT}/lib")
endif()
set(package_folder "${shared_folder}/cmake/DeepScale")

if(TARGET deepspeed_launcher AND program_folder)
  install(TARGETS deepspeed_launcher RUNTIME DESTINATION "${program_folder}")
  # The customary other names. Copies, because wheels cannot hold links.
  foreach(name deepscale deepspeed.pt ds)
    install(PROGRAMS $<TARGET_FILE:deepspeed_launcher> DESTINATION "${program_folder}" RENAME ${name}${CMAKE_EXECUTABLE_SUFFIX})
  endforeach()
endif()
if(TARGET ds_report AND program_folder)
  install(TARGETS ds_report RUNTIME DESTINATION "${program_folder}")
  install(PROGRAMS $<TARGET_FILE:ds_report> DESTINATION "${program_folder}" RENAME dsr${CMAKE_EXECUTABLE_SUFFIX})
endif()
if(TARGET ds_elastic AND program_folder)
  install(TARGETS ds_ckpt ds_elastic ds_plan ds_ssh RUNTIME DESTINATION "${program_folder}")
endif()

if(TARGET deepscale)
  set_target_properties(deepscale PROPERTIES EXPORT_NAME DeepScale INSTALL_RPATH "${library_rpath}")
  install(TARGETS deepscale EXPORT DeepScaleTargets
    LIBRARY DESTINATION "${library_folder}" COMPONENT torch
    ARCHIVE DESTINATION "${library_folder}" COMPONENT torch
    RUNTIME DESTINATION "${library_folder}" COMPONENT torch
    INCLUDES DESTINATION "${prefix}include")
  install(EXPORT DeepScaleTargets NAMESPACE DeepScale:: DESTINATION "${package_folder}/torch-${TorchWheel_MINOR}" COMPONENT torch)
endif()
if(TARGET deepscale_python AND torch_folder)
  set_target_properties(deepscale_python PROPERTIES INSTALL_RPATH "${library_rpath}")
  install(TARGETS deepscale_python LIBRARY DESTINATION "${torch_folder}" COMPONENT torch)
endif()
if(DEEPSCALE_TORCH_PARTS)
  install(DIRECTORY "${DEEPSCALE_TORCH_PARTS}/" DESTINATION "." USE_SOURCE_PERMISSIONS)
endif()

if(TARGET deepscale OR DEEPSCALE_TORCH_PARTS)
  install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/" DESTINATION "${prefix}include" FILES_MATCHING PATTERN "*.h")
  configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/DeepScaleConfig.cmake.in"
    "${PROJECT_BINARY_DIR}/DeepScaleConfig.cmake" INSTALL_DESTINATION "${package_folder}")
  write_basic_package_version_file("${PROJECT_BINARY_DIR}/DeepScaleConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
  install(FILES "${PROJECT_BINARY_DIR}/DeepScaleConfig.cmake" "${PROJECT_BINARY_DIR}/DeepScaleConfigVersion.cmake"
    "${PROJECT_SOURCE_DIR}/cmake/FindTorchWheel.cmake" DESTINATION "${package_folder}")
endif()
