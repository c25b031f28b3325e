@echo off
rem Builds the wheel on Windows with Visual Studio's compiler, against the torch of the Python in PATH (or of PYTHON):
rem   build_win.bat [OUTPUT_FOLDER]      default: dist
rem Needs: Visual Studio 2022 or its Build Tools with "Desktop development with C++"; Python 3.10 or newer with torch.
rem Nothing is compiled on the machines that install the wheel, so there is nothing that DS_BUILD_* variables could choose.
setlocal EnableExtensions DisableDelayedExpansion
cd /d "%~dp0" || exit /b 1

set "OUTPUT=%~1"
if not defined OUTPUT set "OUTPUT=dist"
if not defined PYTHON set "PYTHON=python"

for /f "tokens=1 delims==" %%V in ('set DS_BUILD_ 2^>nul') do echo %%V is not needed any more and is ignored: every operator is in the wheel.
if defined DISTUTILS_USE_SDK echo DISTUTILS_USE_SDK is not needed any more and is ignored.

"%PYTHON%" -c "import sys; sys.exit(sys.version_info < (3, 10))" || (
  echo error: "%PYTHON%" is no Python 3.10 or newer; set PYTHON to one.
  exit /b 1
)
"%PYTHON%" -c "import torch; print('torch', torch.__version__)" || (
  echo error: "%PYTHON%" has no torch; install it first: pip install torch==2.11.0
  exit /b 1
)

where cl >nul 2>nul && goto compiler_found
set "VSWHERE=%ProgramFiles(x86)%\Microsoft Visual Studio\Installer\vswhere.exe"
if not exist "%VSWHERE%" (
  echo error: Visual Studio is not installed; get the Build Tools with "Desktop development with C++".
  exit /b 1
)
set "VSPATH="
for /f "usebackq delims=" %%P in (`"%VSWHERE%" -latest -products * -requires Microsoft.VisualStudio.Component.VC.Tools.x86.x64 -property installationPath`) do set "VSPATH=%%P"
if not defined VSPATH (
  echo error: Visual Studio has no C++ compiler; add "Desktop development with C++" in its installer.
  exit /b 1
)
call "%VSPATH%\VC\Auxiliary\Build\vcvars64.bat" >nul || exit /b 1
:compiler_found

"%PYTHON%" -m pip install --upgrade "scikit-build-core>=0.10" ninja "cmake>=3.25" || exit /b 1
rem The same settings as the preset windows-msvc.
set "CMAKE_GENERATOR=Ninja"
set "SKBUILD_CMAKE_DEFINE=CMAKE_CXX_COMPILER=cl;DEEPSCALE_FETCH_DEPENDENCIES=ON"
"%PYTHON%" -m pip wheel . --no-deps --no-build-isolation --wheel-dir "%OUTPUT%" -v || exit /b 1
echo.
echo The wheel is in %OUTPUT%. Install it with: "%PYTHON%" -m pip install the file's name
endlocal
