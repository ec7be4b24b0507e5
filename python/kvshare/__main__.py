from kvshare._cli import main

main()
