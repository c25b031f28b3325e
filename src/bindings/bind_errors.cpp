// DeepScale's errors as Python's: ConfigError -> DeepSpeedConfigError, IoError -> OSError, UnsupportedError ->
// NotImplementedError, CommError and CheckpointError -> classes of the same name below RuntimeError.
#include "bindings/bindings.h"
#include "deepscale/error.h"

namespace deepscale {

void register_errors(py::module_& m) {
  py::register_exception<ConfigError>(m, "DeepSpeedConfigError", PyExc_Exception);
  py::register_exception<CommError>(m, "CommError", PyExc_RuntimeError);
  py::register_exception<CheckpointError>(m, "CheckpointError", PyExc_RuntimeError);
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const IoError& io) {
      PyErr_SetString(PyExc_OSError, io.what());
    } catch (const UnsupportedError& unsupported) {
      PyErr_SetString(PyExc_NotImplementedError, unsupported.what());
    }
  });
}

}  // namespace deepscale
