// SHA-256 (FIPS 180-4) of a short text: seeds the training windows as examples/gpt/data.py does.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

std::array<uint8_t, 32> sha256(std::string_view text);
