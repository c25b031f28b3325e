// The user as whom this process runs, and objects that are that user's alone.
#include <aclapi.h>
#include <sddl.h>

#include <vector>

#include "base/error.h"
#include "base/hash.h"
#include "platform/resources.h"
#include "platform/text_windows.h"

namespace deepscale {
namespace {

/// The bytes of a TOKEN_USER; empty on failure.
std::vector<char> token_user() {
  HANDLE token = nullptr;
  if (!OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &token)) return {};
  const Handle owned(token);
  DWORD bytes = 0;
  GetTokenInformation(token, TokenUser, nullptr, 0, &bytes);
  std::vector<char> user(bytes);
  if (!GetTokenInformation(token, TokenUser, user.data(), bytes, &bytes)) return {};
  return user;
}

PSID sid_of(const std::vector<char>& user) {
  return reinterpret_cast<const TOKEN_USER*>(user.data())->User.Sid;
}

/// Whether the account may write anywhere on this machine in any case: the system and the administrators' group.
bool is_trusted(PSID sid) {
  return IsWellKnownSid(sid, WinLocalSystemSid) || IsWellKnownSid(sid, WinBuiltinAdministratorsSid) ||
         IsWellKnownSid(sid, WinCreatorOwnerSid);
}

/// Whether somebody other than the user may change what is in the folder.
bool others_may_write(PACL list, PSID user) {
  constexpr DWORD kWrites =
      FILE_WRITE_DATA | FILE_APPEND_DATA | FILE_DELETE_CHILD | WRITE_DAC | WRITE_OWNER | GENERIC_WRITE | GENERIC_ALL;
  if (list == nullptr) return true;  // no list: everything is allowed to everybody
  for (DWORD i = 0; i < list->AceCount; ++i) {
    void* entry = nullptr;
    if (!GetAce(list, i, &entry)) return true;
    const auto* allowed = static_cast<const ACCESS_ALLOWED_ACE*>(entry);
    if (allowed->Header.AceType != ACCESS_ALLOWED_ACE_TYPE || (allowed->Header.AceFlags & INHERIT_ONLY_ACE) != 0) {
      continue;
    }
    auto* const sid = const_cast<DWORD*>(&allowed->SidStart);
    if ((allowed->Mask & kWrites) != 0 && !EqualSid(sid, user) && !is_trusted(sid)) return true;
  }
  return false;
}

}  // namespace

std::wstring user_sid() {
  const std::vector<char> user = token_user();
  wchar_t* text = nullptr;
  DS_CHECK_AS(IoError, !user.empty() && ConvertSidToStringSidW(sid_of(user), &text),
              "cannot find out as which user this process runs: {}", error_text());
  std::wstring sid = text;
  LocalFree(text);
  return sid;
}

std::shared_ptr<void> user_only_descriptor() {
  const std::wstring sid = user_sid();
  const std::wstring rules = L"O:" + sid + L"D:P(A;OICI;GA;;;" + sid + L")(A;OICI;GA;;;SY)";
  PSECURITY_DESCRIPTOR descriptor = nullptr;
  if (!ConvertStringSecurityDescriptorToSecurityDescriptorW(rules.c_str(), SDDL_REVISION_1, &descriptor, nullptr)) {
    return nullptr;
  }
  return {descriptor, [](void* memory) { LocalFree(memory); }};
}

int64_t this_user_id() {
  return static_cast<int64_t>(fnv1a(to_utf8(user_sid())) >> 1);
}

bool make_private_folder(const std::filesystem::path& path) {
  const std::shared_ptr<void> descriptor = user_only_descriptor();
  SECURITY_ATTRIBUTES attributes = {sizeof(attributes), descriptor.get(), FALSE};
  if (CreateDirectoryW(path.c_str(), descriptor != nullptr ? &attributes : nullptr)) return true;
  const DWORD kind = GetFileAttributesW(path.c_str());
  if (kind == INVALID_FILE_ATTRIBUTES || (kind & FILE_ATTRIBUTE_DIRECTORY) == 0 ||
      (kind & FILE_ATTRIBUTE_REPARSE_POINT) != 0) {
    return false;
  }
  const std::vector<char> user = token_user();
  PSID owner = nullptr;
  PACL list = nullptr;
  PSECURITY_DESCRIPTOR found = nullptr;
  if (user.empty() ||
      GetNamedSecurityInfoW(path.c_str(), SE_FILE_OBJECT, OWNER_SECURITY_INFORMATION | DACL_SECURITY_INFORMATION,
                            &owner, nullptr, &list, nullptr, &found) != ERROR_SUCCESS) {
    return false;
  }
  const bool ours = EqualSid(owner, sid_of(user)) || IsWellKnownSid(owner, WinBuiltinAdministratorsSid);
  const bool safe = ours && !others_may_write(list, sid_of(user));
  LocalFree(found);
  return safe;
}

}  // namespace deepscale
