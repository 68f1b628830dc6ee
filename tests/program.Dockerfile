# A static program and nothing else: the end-to-end test's own images. The context is a folder that holds `program`.
FROM scratch
COPY --chmod=0755 program /program
USER 65532:65532
ENTRYPOINT ["/program"]
