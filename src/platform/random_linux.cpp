#include <sys/random.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "platform/random.h"

namespace deepscale {

std::string random_token() {
  std::array<unsigned char, 16> bytes;
  // So few bytes come at once or not at all.
  DS_CHECK_AS(IoError, getrandom(bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()),
              "the system gives no random bytes: {}", std::strerror(errno));
  std::string text;
  for (const unsigned char byte : bytes) text += fmt::format("{:02x}", byte);
  return text;
}

}  // namespace deepscale
