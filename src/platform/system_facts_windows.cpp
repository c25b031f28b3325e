#include <windows.h>

#include <cstdint>
#include <string>

#include "platform/system_facts.h"

namespace deepscale {
namespace {

std::string registry_text(const std::string& key, const char* name) {
  char text[512] = {};
  DWORD bytes = sizeof(text) - 1;
  const LSTATUS status =
      RegGetValueA(HKEY_LOCAL_MACHINE, key.c_str(), name, RRF_RT_REG_SZ, /*pdwType=*/nullptr, text, &bytes);
  return status == ERROR_SUCCESS ? text : "";
}

// Display adapters; subkeys 0000, 0001, ...
constexpr const char* kAdapters = "SYSTEM\\CurrentControlSet\\Control\\Class\\{4d36e968-e325-11ce-bfc1-08002be10318}\\";
constexpr int kMostAdapters = 64;

std::string adapter_key(int index) {
  const std::string digits = std::to_string(index);
  return kAdapters + std::string(4 - digits.size(), '0') + digits;
}

bool is_nvidia(const std::string& key) {
  return registry_text(key, "ProviderName").find("NVIDIA") != std::string::npos;
}

}  // namespace

std::string operating_system_name() {
  const std::string key = "SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion";
  const std::string name = registry_text(key, "ProductName");
  const std::string build = registry_text(key, "CurrentBuildNumber");
  return (name.empty() ? "Windows" : name) + (build.empty() ? "" : " build " + build);
}

std::string c_library() {
#ifdef _UCRT
  return "ucrt";
#else
  return "msvcrt";
#endif
}

std::vector<std::string> gpu_names() {
  std::vector<std::string> names;
  for (int i = 0; i < kMostAdapters; ++i) {
    if (is_nvidia(adapter_key(i))) names.push_back(registry_text(adapter_key(i), "DriverDesc"));
  }
  return names;
}

std::optional<std::string> gpu_driver_version() {
  for (int i = 0; i < kMostAdapters; ++i) {
    if (is_nvidia(adapter_key(i))) return registry_text(adapter_key(i), "DriverVersion");
  }
  return std::nullopt;
}

}  // namespace deepscale
