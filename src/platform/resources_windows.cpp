#include <algorithm>
#include <bit>

#include "base/error.h"
#include "platform/memory_limits.h"
#include "platform/resources.h"
#include "platform/text_windows.h"

namespace deepscale {
namespace {

uint64_t creation_time(HANDLE process) {
  FILETIME created = {};
  FILETIME exited = {};
  FILETIME kernel = {};
  FILETIME user = {};
  if (!GetProcessTimes(process, &created, &exited, &kernel, &user)) return 0;
  return uint64_t{created.dwHighDateTime} << 32 | created.dwLowDateTime;
}

/// CPUs by the rate that the job allows, or a large number. A rate is in hundredths of a percent of all CPUs.
int job_cpus() {
  JOBOBJECT_CPU_RATE_CONTROL_INFORMATION rate = {};
  if (!QueryInformationJobObject(nullptr, JobObjectCpuRateControlInformation, &rate, sizeof(rate), nullptr)) {
    return INT_MAX;
  }
  constexpr DWORD kHardCap = JOB_OBJECT_CPU_RATE_CONTROL_ENABLE | JOB_OBJECT_CPU_RATE_CONTROL_HARD_CAP;
  if ((rate.ControlFlags & kHardCap) != kHardCap || rate.CpuRate == 0) return INT_MAX;
  const int64_t all = GetActiveProcessorCount(ALL_PROCESSOR_GROUPS);
  return static_cast<int>(std::max<int64_t>(1, (all * rate.CpuRate + 9999) / 10000));
}

/// A text of the registry's HKEY_LOCAL_MACHINE; empty when there is none.
std::string registry_text(const wchar_t* key, const wchar_t* name) {
  wchar_t text[256] = {};
  DWORD bytes = sizeof(text) - sizeof(wchar_t);
  if (RegGetValueW(HKEY_LOCAL_MACHINE, key, name, RRF_RT_REG_SZ | RRF_SUBKEY_WOW6464KEY, nullptr, text, &bytes) !=
      ERROR_SUCCESS) {
    return {};
  }
  return to_utf8(text);
}

}  // namespace

int usable_cpu_count() {
  DWORD_PTR mask = 0;
  DWORD_PTR system_mask = 0;
  if (!GetProcessAffinityMask(GetCurrentProcess(), &mask, &system_mask)) return 1;
  // 0: threads in several processor groups, so all of them count.
  const int by_mask =
      mask == 0 ? static_cast<int>(GetActiveProcessorCount(ALL_PROCESSOR_GROUPS)) : std::popcount(uint64_t{mask});
  return std::max(1, std::min(by_mask, job_cpus()));
}

MemoryFacts machine_memory_facts() {
  MEMORYSTATUSEX status = {};
  status.dwLength = sizeof(status);
  if (!GlobalMemoryStatusEx(&status)) return {};
  MemoryFacts facts;
  facts.total_bytes = static_cast<int64_t>(status.ullTotalPhys);
  // What is committed must fit into main memory and page file, too.
  facts.available_bytes = static_cast<int64_t>(std::min(status.ullAvailPhys, status.ullAvailPageFile));
  return facts;
}

MemoryFacts memory_facts() {
  return within_limits(machine_memory_facts(), memory_limits());
}

int64_t this_process_id() {
  return GetCurrentProcessId();
}

ProcessIdentity this_process() {
  return {this_process_id(), creation_time(GetCurrentProcess())};
}

bool is_alive(const ProcessIdentity& process) {
  const Handle handle(
      OpenProcess(PROCESS_QUERY_LIMITED_INFORMATION | SYNCHRONIZE, FALSE, static_cast<DWORD>(process.pid)));
  if (!handle) return GetLastError() == ERROR_ACCESS_DENIED;  // somebody else's; there is such a process
  if (WaitForSingleObject(handle.get(), 0) != WAIT_TIMEOUT) return false;
  return process.start_time == 0 || creation_time(handle.get()) == process.start_time;
}

std::filesystem::path runtime_folder() {
  return std::filesystem::temp_directory_path();
}

std::string host_identity() {
  // Installations that were copied have the same number, but not the same name. Sections and processes are per terminal
  // session; processes that meet live under one boot.
  wchar_t name[256] = {};
  DWORD size = 256;
  GetComputerNameExW(ComputerNamePhysicalDnsHostname, name, &size);
  DWORD session = 0;
  ProcessIdToSessionId(GetCurrentProcessId(), &session);
  return fmt::format("{} {} session {}", to_utf8(name),
                     registry_text(L"SOFTWARE\\Microsoft\\Cryptography", L"MachineGuid"), session);
}

}  // namespace deepscale
