# The CPU kernels, for include() from the top-level CMakeLists.txt. Sets FLA_CPU_SOURCES; include
# directory: the repository root. One kernel source is compiled once per ISA; only those files get
# -m flags, and they include nothing whose inline functions could leak into the others.
set(FLA_CPU_SOURCES
    ${CMAKE_CURRENT_LIST_DIR}/cpu.cc
    ${CMAKE_CURRENT_LIST_DIR}/../linear_attention/cpu.cc
    ${CMAKE_CURRENT_LIST_DIR}/../linear_attention/cpu_portable.cc
    ${CMAKE_CURRENT_LIST_DIR}/../causal_conv_with_state/cpu.cc
    ${CMAKE_CURRENT_LIST_DIR}/../causal_conv_with_state/cpu_portable.cc
    ${CMAKE_CURRENT_LIST_DIR}/../window_attention/cpu.cc
    ${CMAKE_CURRENT_LIST_DIR}/../window_attention/cpu_portable.cc
    ${CMAKE_CURRENT_LIST_DIR}/../hybrid_attention/cpu.cc
    ${CMAKE_CURRENT_LIST_DIR}/../hybrid_attention/cpu_portable.cc)
set(fla_kernel_flags -O3 -ffp-contract=fast -fno-math-errno -fno-trapping-math -Wno-psabi)
# GCC 12 takes the undefined upper lanes inside its own AVX-512 headers for a mistake.
set(fla_avx512_quiet $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
set(fla_avx2_flags -mavx2 -mfma -mf16c)
set(fla_avx512_flags ${fla_avx2_flags} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512
    ${fla_avx512_quiet})
foreach(op linear_attention causal_conv_with_state window_attention hybrid_attention)
  set(fla_dir ${CMAKE_CURRENT_LIST_DIR}/../${op})
  set_source_files_properties(${fla_dir}/cpu_portable.cc PROPERTIES COMPILE_OPTIONS "${fla_kernel_flags}")
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
    list(APPEND FLA_CPU_SOURCES ${fla_dir}/cpu_avx2.cc ${fla_dir}/cpu_avx512.cc)
    set_source_files_properties(${fla_dir}/cpu_avx2.cc PROPERTIES COMPILE_OPTIONS
                                "${fla_kernel_flags};${fla_avx2_flags}")
    set_source_files_properties(${fla_dir}/cpu_avx512.cc PROPERTIES COMPILE_OPTIONS
                                "${fla_kernel_flags};${fla_avx512_flags}")
  endif()
endforeach()
