#include "launcher/hostfile.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "launcher/text.h"

namespace deepscale {
namespace {

constexpr int kMaxSlots = 65536;
constexpr std::string_view kExpected = "expected \"host slots=N\", for instance \"worker-1 slots=4\"";

/// N of "slots=N", nothing when it does not fit.
std::optional<int> slot_count(std::string_view word) {
  constexpr std::string_view kKey = "slots=";
  if (!word.starts_with(kKey)) return std::nullopt;
  word.remove_prefix(kKey.size());
  int count = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), count);
  if (error != std::errc() || end != word.data() + word.size() || count < 0) return std::nullopt;
  return count;
}

/// Whether the words behind a host's slots are attributes that other programs read, such as Open MPI's "max_slots=8".
bool are_attributes(const std::vector<std::string>& words) {
  return std::all_of(words.begin() + 2, words.end(), [](const std::string& word) {
    const size_t equals = word.find('=');
    return equals != std::string::npos && equals > 0 && !word.starts_with("slots=");
  });
}

}  // namespace

std::vector<HostSlots> parse_hostfile(std::string_view text, const std::string& path) {
  std::vector<HostSlots> hosts;
  int number = 0;
  for (const std::string& line : split(text, '\n')) {
    ++number;
    const std::vector<std::string> words = split_words(line.substr(0, line.find('#')));
    if (words.empty()) continue;
    const std::optional<int> count = words.size() >= 2 && are_attributes(words) ? slot_count(words[1]) : std::nullopt;
    DS_CHECK_AS(ConfigError, count.has_value(), "hostfile {}, line {}: \"{}\"; {}", path, number, line, kExpected);
    DS_CHECK_AS(ConfigError, *count >= 1 && *count <= kMaxSlots,
                "hostfile {}, line {}: host \"{}\" has {} slots; expected 1..{}", path, number, words[0], *count,
                kMaxSlots);
    DS_CHECK_AS(ConfigError, words[0][0] != '-', "hostfile {}, line {}: \"{}\" is not a host name", path, number,
                words[0]);
    const bool known =
        std::any_of(hosts.begin(), hosts.end(), [&](const HostSlots& host) { return host.host == words[0]; });
    DS_CHECK_AS(ConfigError, !known, "hostfile {}, line {}: host \"{}\" is named twice", path, number, words[0]);
    HostSlots host{words[0], {}};
    for (int slot = 0; slot < *count; ++slot) host.slots.push_back(std::to_string(slot));
    hosts.push_back(std::move(host));
  }
  DS_CHECK_AS(ConfigError, !hosts.empty(), "hostfile {} names no host; {}", path, kExpected);
  return hosts;
}

std::vector<HostSlots> read_hostfile(const std::string& path) {
  std::error_code ignored;
  DS_CHECK_AS(ConfigError, !std::filesystem::is_directory(path, ignored), "the hostfile {} is a folder", path);
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  DS_CHECK_AS(ConfigError, file.good() || file.eof(), "the hostfile {} cannot be read", path);
  return parse_hostfile(text, path);
}

std::vector<HostSlots> parse_world_info(const std::string& text) {
  constexpr fmt::format_string<const std::string&> kExpected =
      "--world_info: expected base64 of {{\"host\": [slots], ...}}, found \"{}\"";
  std::string json_text;
  try {
    json_text = from_base64url(text);
  } catch (const ConfigError&) {
    ds_throw<ConfigError>(kExpected, text);
  }
  // Ordered: ranks are numbered as the hosts are written.
  const auto world = nlohmann::ordered_json::parse(json_text, nullptr, /*allow_exceptions=*/false);
  DS_CHECK_AS(ConfigError, world.is_object() && !world.empty(), kExpected, text);
  std::vector<HostSlots> hosts;
  for (const auto& [host, slots] : world.items()) {
    DS_CHECK_AS(ConfigError, slots.is_array() && !slots.empty(), kExpected, text);
    HostSlots entry{host, {}};
    for (const auto& slot : slots) {
      DS_CHECK_AS(ConfigError, slot.is_number_unsigned(), kExpected, text);
      entry.slots.push_back(slot.dump());
    }
    hosts.push_back(std::move(entry));
  }
  return hosts;
}

}  // namespace deepscale
