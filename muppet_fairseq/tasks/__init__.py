"""The fairseq task. fairseq imports every module of this folder."""
