// DeepScale's errors as Python's: ConfigError -> DeepSpeedConfigError (elasticity's below it), IoError -> OSError,
// UnsupportedError -> NotImplementedError, CommError and CheckpointError -> classes of the same name below
// RuntimeError.
#include "bindings/bindings.h"
#include "deepscale/error.h"

namespace deepscale {

void register_errors(py::module_& m) {
  // Later registrations are tried first, so derived classes stand behind their bases.
  const auto& config_error = py::register_exception<ConfigError>(m, "DeepSpeedConfigError", PyExc_Exception);
  const auto& elasticity_error = py::register_exception<ElasticityError>(m, "ElasticityError", config_error);
  py::register_exception<ElasticityConfigError>(m, "ElasticityConfigError", elasticity_error);
  py::register_exception<ElasticityIncompatibleWorldSize>(m, "ElasticityIncompatibleWorldSize", elasticity_error);
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
