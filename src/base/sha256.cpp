#include "base/sha256.h"

#include <fmt/format.h>

#include <bit>
#include <cmath>

namespace deepscale {
namespace {

constexpr size_t kBlock = 64;
constexpr int kRounds = 64;

/// The first 32 bits of the fractional part of `root`.
uint32_t fraction_bits(long double root) {
  return static_cast<uint32_t>((root - std::floor(root)) * 4294967296.0L);
}

struct Constants {
  std::array<uint32_t, 8> start;         // square roots of the first 8 primes
  std::array<uint32_t, kRounds> rounds;  // cube roots of the first 64
};

Constants make_constants() {
  Constants constants{};
  size_t count = 0;
  for (int candidate = 2; count < kRounds; ++candidate) {
    bool prime = true;
    for (int divisor = 2; divisor * divisor <= candidate; ++divisor) prime = prime && candidate % divisor != 0;
    if (!prime) continue;
    if (count < constants.start.size())
      constants.start[count] = fraction_bits(std::sqrt(static_cast<long double>(candidate)));
    constants.rounds[count++] = fraction_bits(std::cbrt(static_cast<long double>(candidate)));
  }
  return constants;
}

void add_block(std::array<uint32_t, 8>& state, const Constants& constants, const uint8_t* block) {
  std::array<uint32_t, kRounds> words{};
  for (size_t i = 0; i < 16; ++i) {
    for (size_t byte = 0; byte < 4; ++byte) words[i] = (words[i] << 8) | block[4 * i + byte];
  }
  for (size_t i = 16; i < kRounds; ++i) {
    const uint32_t a = words[i - 15];
    const uint32_t b = words[i - 2];
    words[i] = words[i - 16] + (std::rotr(a, 7) ^ std::rotr(a, 18) ^ (a >> 3)) + words[i - 7] +
               (std::rotr(b, 17) ^ std::rotr(b, 19) ^ (b >> 10));
  }
  auto [a, b, c, d, e, f, g, h] = state;
  for (size_t i = 0; i < kRounds; ++i) {
    const uint32_t first = h + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) + ((e & f) ^ (~e & g)) +
                           constants.rounds[i] + words[i];
    const uint32_t second = (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    h = g;
    g = f;
    f = e;
    e = d + first;
    d = c;
    c = b;
    b = a;
    a = first + second;
  }
  const std::array<uint32_t, 8> added = {a, b, c, d, e, f, g, h};
  for (size_t i = 0; i < added.size(); ++i) state[i] += added[i];
}

std::string_view text_of(const Digest& digest) {
  return {reinterpret_cast<const char*>(digest.data()), digest.size()};
}

}  // namespace

Digest sha256(std::string_view bytes) {
  static const Constants kConstants = make_constants();
  std::string padded(bytes);
  padded += '\x80';
  while (padded.size() % kBlock != kBlock - 8) padded += '\0';
  const uint64_t bits = uint64_t{bytes.size()} * 8;
  for (int shift = 56; shift >= 0; shift -= 8) padded += static_cast<char>((bits >> shift) & 0xff);
  std::array<uint32_t, 8> state = kConstants.start;
  for (size_t at = 0; at < padded.size(); at += kBlock) {
    add_block(state, kConstants, reinterpret_cast<const uint8_t*>(padded.data()) + at);
  }
  Digest digest{};
  for (size_t i = 0; i < digest.size(); ++i) digest[i] = static_cast<uint8_t>(state[i / 4] >> (24 - 8 * (i % 4)));
  return digest;
}

std::string hmac_sha256(std::string_view key, std::string_view message) {
  std::string block(key.size() > kBlock ? text_of(sha256(key)) : key);
  block.resize(kBlock, '\0');
  std::string inner = block;
  std::string outer = block;
  for (char& byte : inner) byte = static_cast<char>(byte ^ 0x36);
  for (char& byte : outer) byte = static_cast<char>(byte ^ 0x5c);
  const Digest inside = sha256(inner.append(message));
  std::string text;
  for (const uint8_t byte : sha256(outer.append(text_of(inside)))) text += fmt::format("{:02x}", byte);
  return text;
}

bool equal_secrets(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  unsigned difference = 0;
  for (size_t i = 0; i < a.size(); ++i) difference |= static_cast<unsigned char>(a[i] ^ b[i]);
  return difference == 0;
}

}  // namespace deepscale
