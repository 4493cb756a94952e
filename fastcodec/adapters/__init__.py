"""Other codecs on fastcodec's coders, without a change to their code. `docs/adapters.md` describes them.

    import fastcodec.adapters.compressai
    fastcodec.adapters.compressai.install()

Nothing here is imported by fastcodec itself, and no other codec is until its adapter is installed.
"""
