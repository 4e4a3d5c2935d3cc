from sysdpo.cli.main import main

main()
