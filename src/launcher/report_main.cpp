// ds_report: what this installation can do on this machine. Exit code 0; 1 when --import finds that torch or this
// package cannot be imported; 2 for a command line that cannot be used.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>

#include "base/environment.h"
#include "launcher/report.h"
#include "platform/machine.h"

int main(int count, char** values) {
  CLI::App app("Shows operators, versions and this machine.", "ds_report");
  bool hide_operators = false;
  bool hide_warnings = false;
  bool json = false;
  bool import = false;
  app.add_flag("--hide_operator_status", hide_operators, "leave the table of operators out");
  app.add_flag("--hide_errors_and_warnings", hide_warnings, "leave warnings and reasons out");
  app.add_flag("--json", json, "print one JSON object");
  app.add_flag("--import", import, "also import torch and the extension and say what fails (takes seconds)");
  try {
    std::vector<std::string> words = deepscale::program_arguments(count, values);
    std::reverse(words.begin(), words.end());  // as CLI11 wants them
    app.parse(std::move(words));
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  try {
    const deepscale::Report report =
        deepscale::make_report(import ? deepscale::PythonCheck::kImport : deepscale::PythonCheck::kFilesOnly);
    deepscale::ReportView view;
    view.operators = !hide_operators;
    view.warnings = !hide_warnings;
    view.colors = deepscale::output_is_terminal() && !deepscale::environment("NO_COLOR");  // no-color.org
    fmt::print("{}", json ? deepscale::format_report_json(report, view) : deepscale::format_report(report, view));
    return report.import_failed ? 1 : 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "ds_report: error: {}\n", error.what());
    return 2;
  }
}
