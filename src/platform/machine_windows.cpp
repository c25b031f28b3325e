#include "platform/text_windows.h"

// After windows.h, whose types it uses.
#include <cfgmgr32.h>

#include <algorithm>
#include <filesystem>
#include <string_view>

#include "base/error.h"
#include "platform/command_line.h"
#include "platform/machine.h"

namespace deepscale {
namespace fs = std::filesystem;
namespace {

/// An environment variable as Windows has it; empty when it is unset.
std::wstring wide_variable(const wchar_t* name) {
  std::wstring value(GetEnvironmentVariableW(name, nullptr, 0), L'\0');
  value.resize(GetEnvironmentVariableW(name, value.data(), static_cast<DWORD>(value.size())));
  return value;
}

bool is_file(const std::wstring& path) {
  const DWORD kind = GetFileAttributesW(path.c_str());
  return kind != INVALID_FILE_ATTRIBUTES && (kind & FILE_ATTRIBUTE_DIRECTORY) == 0;
}

std::vector<std::wstring> split(const std::wstring& list) {
  std::vector<std::wstring> parts;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(L';', begin), list.size());
    if (end > begin) parts.push_back(list.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

/// The file itself when its name has an ending that Windows runs, else with one of those put behind it.
std::optional<fs::path> with_ending(const std::wstring& path) {
  std::wstring endings = wide_variable(L"PATHEXT");
  if (endings.empty()) endings = L".COM;.EXE;.BAT;.CMD";
  const size_t dot = path.find_last_of(L".\\/:");
  if (dot != std::wstring::npos && path[dot] == L'.' && is_file(path)) return fs::path(path);
  for (const std::wstring& ending : split(endings)) {
    if (is_file(path + ending)) return fs::path(path + ending);
  }
  return std::nullopt;
}

}  // namespace

std::string host_name() {
  wchar_t name[256] = {};
  DWORD size = 256;
  return GetComputerNameExW(ComputerNameDnsHostname, name, &size) ? to_utf8({name, size}) : "localhost";
}

std::vector<int> usable_cpus() {
  // Numbered through the processor groups, 64 each. A process has CPUs of the group it starts in.
  PROCESSOR_NUMBER here = {};
  GetCurrentProcessorNumberEx(&here);
  DWORD_PTR mask = 0;
  DWORD_PTR system_mask = 0;
  std::vector<int> cpus;
  if (GetProcessAffinityMask(GetCurrentProcess(), &mask, &system_mask)) {
    for (int cpu = 0; cpu < 64; ++cpu) {
      if ((mask >> cpu & 1) != 0) cpus.push_back(here.Group * 64 + cpu);
    }
  }
  if (cpus.empty()) cpus.push_back(0);
  return cpus;
}

int visible_gpu_count() {
  // Plugged-in devices of the class "Display adapters" (its identifier is Windows' own), by the maker in their names.
  constexpr const wchar_t* kDisplayClass = L"{4d36e968-e325-11ce-bfc1-08002be10318}";
  constexpr ULONG kFilter = CM_GETIDLIST_FILTER_CLASS | CM_GETIDLIST_FILTER_PRESENT;
  ULONG length = 0;
  if (CM_Get_Device_ID_List_SizeW(&length, kDisplayClass, kFilter) != CR_SUCCESS || length == 0) return 0;
  std::wstring list(length, L'\0');
  if (CM_Get_Device_ID_ListW(kDisplayClass, list.data(), length, kFilter) != CR_SUCCESS) return 0;
  int count = 0;
  for (const wchar_t* name = list.c_str(); *name != L'\0'; name += std::wstring_view(name).size() + 1) {
    if (std::wstring_view(name).starts_with(L"PCI\\VEN_10DE")) ++count;
  }
  return count;
}

fs::path executable_path() {
  std::wstring path(32768, L'\0');
  const DWORD length = GetModuleFileNameW(nullptr, path.data(), static_cast<DWORD>(path.size()));
  DS_CHECK_AS(IoError, length > 0 && length < path.size(), "cannot find out where this program lies: {}", error_text());
  path.resize(length);
  return path;
}

std::optional<fs::path> find_program(const std::string& program) {
  std::wstring name = to_wide(program);
  if (program.find_first_of("/\\:") != std::string::npos) {
    std::replace(name.begin(), name.end(), L'/', L'\\');
    return with_ending(name);
  }
  for (const std::wstring& folder : split(wide_variable(L"PATH"))) {
    if (auto found = with_ending((fs::path(folder) / name).native())) return found;
  }
  return std::nullopt;
}

std::map<std::string, std::string> environment_variables() {
  std::map<std::string, std::string> variables;
  wchar_t* const block = GetEnvironmentStringsW();
  if (block == nullptr) return variables;
  for (const wchar_t* entry = block; *entry != L'\0';) {
    const std::wstring_view text = entry;
    const size_t equals = text.find(L'=');
    // Names like "=C:" keep the current folder of a drive.
    if (equals != std::wstring_view::npos && equals > 0) {
      variables.emplace(to_utf8(text.substr(0, equals)), to_utf8(text.substr(equals + 1)));
    }
    entry += text.size() + 1;
  }
  FreeEnvironmentStringsW(block);
  return variables;
}

bool output_is_terminal() {
  DWORD mode = 0;
  return GetConsoleMode(GetStdHandle(STD_OUTPUT_HANDLE), &mode) != 0;
}

bool error_output_is_terminal() {
  DWORD mode = 0;
  return GetConsoleMode(GetStdHandle(STD_ERROR_HANDLE), &mode) != 0;
}

bool is_readable(const fs::path& path) {
  const Handle file(CreateFileW(path.c_str(), GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE,
                                nullptr, OPEN_EXISTING, FILE_FLAG_BACKUP_SEMANTICS, nullptr));
  return static_cast<bool>(file);
}

int64_t total_memory_bytes() {
  MEMORYSTATUSEX status = {};
  status.dwLength = sizeof(status);
  return GlobalMemoryStatusEx(&status) ? static_cast<int64_t>(status.ullTotalPhys) : 0;
}

int64_t shared_memory_bytes() {
  // Sections live in main memory and the page file.
  MEMORYSTATUSEX status = {};
  status.dwLength = sizeof(status);
  return GlobalMemoryStatusEx(&status) ? static_cast<int64_t>(status.ullTotalPageFile) : 0;
}

std::vector<std::string> program_arguments(int /*count*/, char** /*values*/) {
  std::vector<std::string> words = split_command_line(to_utf8(GetCommandLineW()));
  if (!words.empty()) words.erase(words.begin());
  return words;
}

std::vector<std::string> python_candidates(const std::string& folder) {
  return {folder + "\\python.exe", folder + "\\..\\python.exe", "python", "python3"};
}

std::string system_description() {
  using GetVersion = LONG(WINAPI*)(OSVERSIONINFOW*);
  // GetVersionEx answers with the version that a program's manifest asks for; this one tells the truth.
  const auto get_version = reinterpret_cast<GetVersion>(
      reinterpret_cast<void*>(GetProcAddress(GetModuleHandleW(L"ntdll"), "RtlGetVersion")));
  OSVERSIONINFOW version = {};
  version.dwOSVersionInfoSize = sizeof(version);
  if (get_version == nullptr || get_version(&version) != 0) return "Windows";
  SYSTEM_INFO system = {};
  GetNativeSystemInfo(&system);
  const char* const machine = system.wProcessorArchitecture == PROCESSOR_ARCHITECTURE_ARM64 ? "arm64" : "x86_64";
  return fmt::format("Windows {}.{}.{} {}", version.dwMajorVersion, version.dwMinorVersion, version.dwBuildNumber,
                     machine);
}

}  // namespace deepscale
