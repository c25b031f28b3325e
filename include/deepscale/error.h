// Errors of DeepScale. Every message says what failed, what was found, what was expected and what to change.
// The Python bindings map them: ConfigError -> DeepSpeedConfigError, IoError -> OSError, the others -> RuntimeError.
#pragma once

#include <stdexcept>

namespace deepscale {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The configuration (a JSON key, an argument, an environment variable) cannot be used.
class ConfigError : public Error {
 public:
  using Error::Error;
};

/// Elastic training (section `elasticity`) cannot be used as it is configured, or not with this number of ranks.
class ElasticityError : public ConfigError {
 public:
  using ConfigError::ConfigError;
};

/// The section `elasticity` is missing, incomplete, or contradicts other settings.
class ElasticityConfigError : public ElasticityError {
 public:
  using ElasticityError::ElasticityError;
};

/// The number of ranks is none of those that the elastic batch size allows.
class ElasticityIncompatibleWorldSize : public ElasticityError {
 public:
  using ElasticityError::ElasticityError;
};

/// A file, a pipe or shared memory could not be read, written or created.
class IoError : public Error {
 public:
  using Error::Error;
};

/// A collective failed: a peer is missing, died, or is at a different operation.
class CommError : public Error {
 public:
  using Error::Error;
};

/// A checkpoint is incomplete, damaged, or does not fit the model.
class CheckpointError : public Error {
 public:
  using Error::Error;
};

/// The request is understood and not supported here.
class UnsupportedError : public Error {
 public:
  using Error::Error;
};

}  // namespace deepscale
