#include <windows.h>
// After windows.h, which it needs.
#include <bcrypt.h>

#include <array>

#include "base/error.h"
#include "platform/random.h"

namespace deepscale {

std::string random_token() {
  std::array<unsigned char, 16> bytes;
  DS_CHECK_AS(
      IoError,
      BCryptGenRandom(nullptr, bytes.data(), static_cast<ULONG>(bytes.size()), BCRYPT_USE_SYSTEM_PREFERRED_RNG) == 0,
      "the system gives no random bytes");
  std::string text;
  for (const unsigned char byte : bytes) text += fmt::format("{:02x}", byte);
  return text;
}

}  // namespace deepscale
