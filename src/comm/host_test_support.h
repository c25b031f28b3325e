// Helpers of the host communicator's tests.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "comm/host_communicator.h"

namespace deepscale::host_test {

/// Bytes of a test buffer, inside or outside shared memory.
class Buffer {
 public:
  enum class Place { kShared, kForeign };

  Buffer(HostCommunicator& communicator, int64_t bytes, Place place) : bytes_(bytes) {
    if (place == Place::kShared) {
      shared_ = communicator.memory()->allocate(bytes);
      data_ = static_cast<char*>(shared_.get());
    } else {
      own_.resize(static_cast<size_t>(bytes) + 1);
      data_ = own_.data();
    }
  }
  [[nodiscard]] char* data() const { return data_; }
  [[nodiscard]] int64_t bytes() const { return bytes_; }
  template <typename T>
  [[nodiscard]] T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  int64_t bytes_;
  std::shared_ptr<void> shared_;
  mutable std::vector<char> own_;
  char* data_;
};

}  // namespace deepscale::host_test
