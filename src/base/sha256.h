// SHA-256 (FIPS 180-4) and HMAC with it (RFC 2104). Pure.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace deepscale {

using Digest = std::array<uint8_t, 32>;

[[nodiscard]] Digest sha256(std::string_view bytes);
/// 64 hexadecimal digits: shows that who made it knows the key, and gives nothing of the key away.
[[nodiscard]] std::string hmac_sha256(std::string_view key, std::string_view message);
/// Whether two texts are equal, in a time that does not tell where they differ.
[[nodiscard]] bool equal_secrets(std::string_view a, std::string_view b);

}  // namespace deepscale
