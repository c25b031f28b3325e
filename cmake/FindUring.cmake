# liburing as the target Uring::uring. The static library: programs must run where only the wheel is installed.
find_path(Uring_INCLUDE_DIR liburing.h)
find_library(Uring_LIBRARY NAMES liburing.a)
mark_as_advanced(Uring_INCLUDE_DIR Uring_LIBRARY)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Uring REQUIRED_VARS Uring_LIBRARY Uring_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "liburing.h and liburing.a are needed for asynchronous files: install liburing-dev (Debian, Ubuntu), or give -DUring_INCLUDE_DIR and -DUring_LIBRARY")
if(Uring_FOUND AND NOT TARGET Uring::uring)
  add_library(Uring::uring UNKNOWN IMPORTED)
  set_target_properties(Uring::uring PROPERTIES IMPORTED_LOCATION "${Uring_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${Uring_INCLUDE_DIR}")
endif()
