# What `make install` puts where: program, both libraries, header, pkg-config file, man page, shell completions.

install(TARGETS qwen-rerank RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS qwen-rerank-static qwen-rerank-shared
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES include/qwen_rerank.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})

# Libs.private is what a static link needs besides the archive. It names plain libraries and not Requires.private, because pkg-config
# would then ask for the .pc files of all of them even to compile against the shared library.
set(QR_PC_PRIVATE "-ljansson -lcrypto -lcurl -lutf8proc")
if(QR_ONEDNN)
  string(APPEND QR_PC_PRIVATE " -ldnnl")
endif()
string(APPEND QR_PC_PRIVATE " ${OpenMP_C_FLAGS} -pthread -lm")
# Absolute folders (-DCMAKE_INSTALL_LIBDIR=/usr/lib64) and relative ones both occur.
foreach(dir LIBDIR INCLUDEDIR)
  if(IS_ABSOLUTE "${CMAKE_INSTALL_${dir}}")
    set(QR_PC_${dir} "${CMAKE_INSTALL_${dir}}")
  else()
    set(QR_PC_${dir} "\${prefix}/${CMAKE_INSTALL_${dir}}")
  endif()
endforeach()
# Filled at install time, so that `cmake --install build --prefix P` (what `make install PREFIX=P` runs) gives a file that says P.
configure_file(qwen-rerank.pc.in ${CMAKE_BINARY_DIR}/qwen-rerank.pc.half @ONLY)
install(CODE "
  file(READ \"${CMAKE_BINARY_DIR}/qwen-rerank.pc.half\" text)
  get_filename_component(prefix \"\${CMAKE_INSTALL_PREFIX}\" ABSOLUTE)
  string(REPLACE \"%PREFIX%\" \"\${prefix}\" text \"\${text}\")
  file(WRITE \"${CMAKE_BINARY_DIR}/qwen-rerank.pc\" \"\${text}\")")
install(FILES ${CMAKE_BINARY_DIR}/qwen-rerank.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

file(GLOB QR_MAN CONFIGURE_DEPENDS docs/*.1)
install(FILES ${QR_MAN} DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)

# One file per shell under completions/, each installed under the name that its shell looks for.
foreach(pair "qwen-rerank.bash|bash-completion/completions|qwen-rerank" "_qwen-rerank|zsh/site-functions|_qwen-rerank"
    "qwen-rerank.zsh|zsh/site-functions|_qwen-rerank" "qwen-rerank.fish|fish/vendor_completions.d|qwen-rerank.fish")
  string(REPLACE "|" ";" pair "${pair}")
  list(GET pair 0 from)
  list(GET pair 1 dir)
  list(GET pair 2 to)
  if(EXISTS ${CMAKE_SOURCE_DIR}/completions/${from})
    install(FILES completions/${from} DESTINATION ${CMAKE_INSTALL_DATADIR}/${dir} RENAME ${to})
  endif()
endforeach()
